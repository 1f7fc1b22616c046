#!/usr/bin/env python
"""Converts published weights of other code into checkpoints of ours (docs/checkpoints.md).

python tools/convert_checkpoint.py --from detectron2_retinanet --input model_final_bfca0b.pkl \
    --output retinanet.pth --config-file configs/MultiPoseNet/R_50.yaml

With --config-file the weights must fit that config before anything is written.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from mpn_d2.config import load_config
from mpn_d2.config_files import config_file
from mpn_d2.convert import SOURCES, convert
from mpn_d2.convert.moving import Converted, State
from mpn_d2.engine.build import build_pose_model
from mpn_d2.engine.checkpoint import some_names
from mpn_d2.engine.cli import run_command
from mpn_d2.modeling.weight_settings import check_settings
from mpn_d2.utils.files import replaced_when_done
from mpn_d2.utils.safe_files import add_trust_argument, read_foreign_weights


def parse_args() -> argparse.Namespace:
    sources = "\n".join(f"  {name:26}{source.what}" for name, source in SOURCES.items())
    parser = argparse.ArgumentParser(
        description=f"{__doc__}\nsources:\n{sources}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--from", dest="source", required=True, choices=SOURCES, metavar="NAME", help="see above"
    )
    parser.add_argument("--input", required=True, metavar="F", help="weights: .h5, .pkl, .pth ...")
    parser.add_argument("--output", required=True, metavar="F", help="checkpoint to write, .pth")
    parser.add_argument("--config-file", metavar="C", help="config that the weights are meant for")
    add_trust_argument(parser)
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    if Path(args.output).suffix != ".pth":
        raise ValueError(f"--output {args.output}: a name that ends in .pth is needed")
    if os.path.realpath(args.output) == os.path.realpath(args.input):
        raise ValueError(f"--output {args.output} is the input: name another file")
    fit = SOURCES[args.source].fit
    if fit and not args.config_file:
        raise ValueError(
            f"--from {args.source} needs --config-file: what the weights become depends on the "
            "network that they are meant for"
        )
    state = read_foreign_weights(args.input)
    try:
        done = convert(args.source, state)
    except ValueError as error:
        raise ValueError(f"{args.input}: {error}") from error
    if args.config_file:
        check_fit(done, config_file(args.config_file), args.output, fit)
    content = {
        "model": done.weights,
        "settings": done.settings,
        "source": {"from": args.source, "file": Path(args.input).name},
    }
    with replaced_when_done(args.output) as partial:
        torch.save(content, partial)
    report(done, args.output)


def check_fit(
    done: Converted, path: str, output: str, fit: Callable[[State, State], State] | None = None
) -> None:
    """Raises a ValueError where a network of a config has no place for some of the weights, after
    `fit` has made them that network's, if there is one."""
    cfg = load_config(path, ["MODEL.DEVICE", "meta", "MODEL.ASSEMBLER.WEIGHTS", ""])
    check_settings(done.settings, done.weights, cfg, output)
    with torch.device("meta"):  # shapes alone
        model = build_pose_model(cfg)
    if fit:
        done.weights = fit(done.weights, model.state_dict())
    shapes = {name: tuple(x.shape) for name, x in model.state_dict().items()}
    problems = []
    for name, tensor in done.weights.items():
        if name.endswith("num_batches_tracked"):
            continue  # frozen norms have none
        if name not in shapes:
            problems.append(f"{name} is unknown")
        elif shapes[name] != tuple(tensor.shape):
            problems.append(f"{name} is {tuple(tensor.shape)}, {shapes[name]} there")
    if problems:
        raise ValueError(f"the weights do not fit {path}: {some_names(problems)}")


def report(done: Converted, output: str) -> None:
    """Prints what was converted, what was not, and the settings to use it with."""
    parts = Counter(
        ".".join(name.split(".")[: 2 if name.startswith("backbone.") else 1])
        for name in done.weights
    )
    counts = ", ".join(f"{part} {count}" for part, count in parts.items())
    print(f"{output}: {sum(parts.values())} tensors ({counts})")
    if done.unused:
        print(f"no place for {len(done.unused)}: {some_names(done.unused)}")
    print("to be loaded under:")
    for key, value in {k: v for x in done.settings.values() for k, v in x.items()}.items():
        print(f"  {key}: {value}")


if __name__ == "__main__":
    arguments = parse_args()
    run_command(lambda: main(arguments))
