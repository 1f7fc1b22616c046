"""What every command does before its work: log files, saved config, seed, GPUs counted."""

from __future__ import annotations

from argparse import Namespace

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger


def start_run(cfg: CfgNode, args: Namespace) -> None:
    """Detectron2's default_setup, with the messages of mpn_d2 on stdout and in log.txt too."""
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="mpn_d2")
    default_setup(cfg, args)


def check_gpus(count: int) -> None:
    """Raises a ValueError if several GPUs are asked for that this machine does not have."""
    there = torch.cuda.device_count()
    if count > 1 and there < count:
        raise ValueError(
            f"--num-gpus {count}, but PyTorch sees {there} GPUs here: give --num-gpus "
            f"{max(there, 1)}"
        )
