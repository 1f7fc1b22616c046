"""What every command does before its work: own datasets, log files, saved config, seed."""

from __future__ import annotations

from argparse import Namespace

from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from mpn_d2.data.own_datasets import register_own_datasets


def start_run(cfg: CfgNode, args: Namespace) -> None:
    """Detectron2's default_setup, with the messages of mpn_d2 on stdout and in log.txt too.

    Registers the datasets of DATASETS.OWN first, so that a mistake in them writes nothing.
    """
    register_own_datasets(cfg)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="mpn_d2")
    default_setup(cfg, args)
