"""Trains and evaluates any system of mpn_d2 from its config file.

mpn-train (or, in the repository, python train_net.py) --config-file F [KEY VALUE ...]:

mpn-train --config-file MultiPoseNet/R_50.yaml --stage all OUTPUT_DIR out
mpn-train --config-file MultiPoseNet/R_50.yaml --eval-only OUTPUT_DIR out

The config is a file, or the name of one that comes with the package.

Several processes: --num-gpus N starts one for each GPU, and on a machine without GPUs N processes
on its cores (PyTorch's gloo). Or: torchrun --nproc_per_node N train_net.py --config-file ...
(then without --num-gpus). docs/distributed.md has several machines and Slurm.
"""

from __future__ import annotations

import argparse
import os

from detectron2.engine import default_argument_parser
from detectron2.utils import comm

from mpn_d2.config import load_config
from mpn_d2.config_files import config_file
from mpn_d2.data.datasets import register_pose_datasets
from mpn_d2.engine.cli import run_command
from mpn_d2.engine.processes import run_in_processes
from mpn_d2.engine.setup import start_run
from mpn_d2.engine.stages import evaluate, save_results, stage_names, train, trained_weights
from mpn_d2.utils.safe_files import add_trust_argument


def parse_args() -> argparse.Namespace:
    parser = default_argument_parser(epilog=__doc__)
    parser.add_argument(
        "--stage",
        default="all",
        help="keypoint, person, assembly, joint (all parts at once), scoring (of a scored "
        "network), or all: the chain of STAGES.ORDER (default: all)",
    )
    add_trust_argument(parser)
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    register_pose_datasets()
    if args.config_file:
        args.config_file = config_file(args.config_file)
    cfg = load_config(args.config_file, args.opts)
    cfg.freeze()
    if args.stage != "all" and args.stage not in stage_names(cfg):
        raise ValueError(f"unknown --stage {args.stage}: {', '.join(stage_names(cfg))} or all")
    start_run(cfg, args)
    if args.eval_only:
        weights = cfg.MODEL.WEIGHTS if "MODEL.WEIGHTS" in args.opts else trained_weights(cfg)
        results = evaluate(cfg, weights=weights)
    else:
        results = train(cfg, args.stage, args.opts, resume=args.resume)
    if comm.is_main_process() and results:
        save_results(results, os.path.join(cfg.OUTPUT_DIR, "results.json"))


def run() -> None:
    """The command."""
    arguments = parse_args()
    run_command(lambda: run_in_processes(main, arguments))
