"""What every command does before its work: own datasets, log files, saved config, seed."""

from __future__ import annotations

import logging
import os
import sys
from argparse import Namespace

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger

from mpn_d2.data.own_datasets import register_own_datasets
from mpn_d2.engine.cli import one_line
from mpn_d2.utils.files import make_folder, write_text_atomically

logger = logging.getLogger(__name__)

# What the last run of this process added, by logger: the next one's messages are not its.
_HANDLERS: list[tuple[logging.Logger, logging.Handler]] = []


def start_run(cfg: CfgNode, args: Namespace) -> None:
    """What Detectron2's default_setup does, and more.

    - Registers the datasets of DATASETS.OWN first, so that a mistake in them writes nothing.
    - The messages of mpn_d2 go to stdout and log.txt, too.
    - config.yaml appears whole or not at all.
    - What ends the command in one line has its traceback in log.txt, not on the terminal.

    Raises:
        ValueError: a mistake in DATASETS.OWN.
        OSError: OUTPUT_DIR cannot be made, or written to.
    """
    register_own_datasets(cfg)
    folder, rank = cfg.OUTPUT_DIR, comm.get_rank()
    if folder:
        _make_output_folder(folder)
    _send_messages(folder, rank)
    logger.info("Process %d of %d; environment:\n%s", rank, comm.get_world_size(),
                collect_env_info())  # fmt: skip
    logger.info("Command line arguments: %s", args)
    if comm.is_main_process():
        logger.info("Config:\n%s", cfg.dump())
        if folder:
            write_text_atomically(os.path.join(folder, "config.yaml"), cfg.dump())
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + rank)
    if not getattr(args, "eval_only", False):
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK


def _send_messages(folder: str, rank: int) -> None:
    """To stdout and log.txt, once: a command that trains several networks calls this for each."""
    while _HANDLERS:
        before, handler = _HANDLERS.pop()
        before.removeHandler(handler)
    # Detectron2 remembers for which folders it did so, and would not do it again.
    setup_logger.cache_clear()
    for name in ("fvcore", "detectron2", "mpn_d2"):
        there = list(logging.getLogger(name).handlers)
        for handler in setup_logger(folder, distributed_rank=rank, name=name).handlers:
            if handler not in there:
                _HANDLERS.append((logging.getLogger(name), handler))
            if getattr(handler, "stream", None) is sys.stdout:
                handler.addFilter(_is_for_terminal)


def _make_output_folder(folder: str) -> None:
    try:
        make_folder(folder)
    except NotADirectoryError as error:
        raise NotADirectoryError(f"OUTPUT_DIR: {error}; name another folder") from error


def _is_for_terminal(record: logging.LogRecord) -> bool:
    """Whether `run_command` will not say what a message with a traceback does."""
    error = record.exc_info[1] if record.exc_info else None
    return error is None or one_line(error) is None
