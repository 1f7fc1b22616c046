#!/usr/bin/env python
"""What exporting costs: AP, size and seconds of every kind of file of the quick model.

    python tools/export_table.py --runs ~/.cache/mpn_d2/runs

Takes the network that tools/train_synthetic.py trained in RUNS/drawn-v1 and the drawn people in
RUNS/datasets, exports it in every way (files go to RUNS/export), evaluates every file and the
network itself by the same evaluator, and keeps the figures in --output and docs/export.md. The
ranges of eight bits come from training images. An ONNX file of single precision whose AP is more
than 0.001 (of 1) from that of PyTorch with the same matching is an error.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from detectron2.config import CfgNode
from detectron2.utils.logger import setup_logger

from mpn_d2.config import load_config
from mpn_d2.data.datasets import register_pose_datasets
from mpn_d2.data.image_file import read_pose_image
from mpn_d2.engine.cli import run_command
from mpn_d2.engine.inference_model import load_trained_model
from mpn_d2.engine.stages import FINAL
from mpn_d2.engine.trainer import PoseTrainer
from mpn_d2.export.files import FORMATS
from mpn_d2.export.runtime import ExportedFile
from mpn_d2.export.writing import check_export, write_export
from mpn_d2.utils.doc_tables import fill_tables, markdown_table
from mpn_d2.utils.results import flat_metrics, read_results, update_results

REPO = Path(__file__).resolve().parents[1]
CONFIG = REPO / "configs" / "quick" / "drawn_v1.yaml"
OUTPUT = REPO / "docs" / "results" / "export.json"
SAMPLE = REPO / "datasets" / "coco_sample"
# Of all results: which network and images.
GROUP = "drawn-v1"
# Row -> format and precision; None: PyTorch itself, with the config's matching or the file's.
ROWS = {
    "pytorch": None,
    "pytorch_mutual_best": None,
    "onnx_fp32": ("onnx", "fp32"),
    "onnx_fp16": ("onnx", "fp16"),
    "onnx_int8": ("onnx", "int8"),
    "torchscript_fp32": ("torchscript", "fp32"),
}
COLUMNS = {"keypoint AP": "keypoints/AP", "box AP": "bbox/AP", "person IoU": "sem_seg/IoU-person"}
COLUMNS |= {"MiB": "file/MiB", "seconds to export": "file/seconds"}
# Training images that the ranges of eight bits come from.
CALIBRATION = 32
# Between a file of single precision and PyTorch, of 100.
MOST_DIFFERENCE = 0.1


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", required=True, metavar="DIR", help="of the training and data")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--output", default=str(OUTPUT), metavar="F.json")
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs over the config"
    )
    return parser.parse_args(arguments)


def main(args: argparse.Namespace) -> None:
    runs = Path(args.runs).expanduser().resolve()
    os.environ["DETECTRON2_DATASETS"] = str(runs / "datasets")
    register_pose_datasets()
    weights = ["MODEL.WEIGHTS", str(runs / "drawn-v1" / FINAL)]
    cfg = load_config(str(CONFIG), [*weights, "OUTPUT_DIR", str(runs / "export"), *args.opts])
    cfg.MODEL.DEVICE = "cpu"
    cfg.freeze()
    digest = weights_digest(runs / "drawn-v1" / FINAL)
    check_rows(read_results(args.output), args.rows, digest)
    for row in args.rows:
        if ROWS[row]:
            check_export(cfg, *ROWS[row])
    setup_logger(name="mpn_d2")
    for row in args.rows:
        measure(cfg, runs, row, args.output, digest)
    check_equal(read_results(args.output)["metrics"])
    show_table(args.output)


def weights_digest(file: Path) -> str:
    """What tells networks apart in the results.

    Raises:
        FileNotFoundError: there are no weights; names the training.
    """
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} not found: train it first (tools/train_synthetic.py --runs RUNS)"
        )
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]


def check_rows(results: dict, rows: Sequence[str], digest: str) -> None:
    """Raises a ValueError if rows that would stay in the results are of other weights."""
    measured = results.get("runs", {})
    others = [
        row
        for row in ROWS
        if row not in rows
        and measured.get(f"{GROUP}/{row}", {"weights": digest}).get("weights") != digest
    ]
    if others:
        raise ValueError(
            f"rows {', '.join(others)} in the results are of other weights: measure them again, "
            "too (--rows), or name another --output"
        )


def measure(cfg: CfgNode, runs: Path, row: str, output: str, digest: str) -> None:
    """Exports what the row needs, evaluates it, and keeps its figures."""
    start = time.perf_counter()
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = str(runs / "export" / row)
    if row == "pytorch_mutual_best":
        cfg.MODEL.ASSEMBLER.MATCHING = "mutual_best"
    cfg.freeze()
    model, figures, extra = load_trained_model(cfg, cfg.MODEL.WEIGHTS), {}, {}
    if ROWS[row]:
        kind, precision = ROWS[row]
        path = runs / "export" / f"drawn_v1_{precision}{FORMATS[kind]}"
        photographs = sorted(SAMPLE.glob("*/*.jpg"))
        training = sorted((runs / "datasets" / "drawn-v1" / "train").iterdir())
        step = max(len(training) // CALIBRATION, 1)
        written = write_export(
            cfg,
            model,
            path,
            kind=kind,
            precision=precision,
            images=[(p.name, read_pose_image(p, cfg.INPUT.FORMAT)) for p in photographs],
            calibration=[
                read_pose_image(p, cfg.INPUT.FORMAT) for p in training[::step][:CALIBRATION]
            ],
        )
        print(f"{row}: compared with PyTorch: {written.agreement.summary()}")
        figures = {"file/MiB": written.size / 2**20, "file/seconds": written.seconds}
        figures |= {f"differs/{name}": x for name, x in written.agreement.largest.items()}
        extra = {"compared": written.agreement.summary()}
        model = ExportedFile(path)
    (results,) = PoseTrainer.test(cfg, model).values()
    update_results(
        output,
        f"{GROUP}/{row}",
        {**flat_metrics(results), **figures},
        seconds=time.perf_counter() - start,
        seed=cfg.SEED,
        weights=digest,
        **extra,
    )


def check_equal(metrics: dict) -> None:
    """Raises a ValueError if files of single precision score otherwise than PyTorch."""
    for row in ("onnx_fp32", "torchscript_fp32"):
        for key in ("keypoints/AP", "bbox/AP"):
            own = metrics.get(f"{GROUP}/{row}/{key}")
            wanted = metrics.get(f"{GROUP}/pytorch_mutual_best/{key}")
            if None not in (own, wanted) and abs(own - wanted) > MOST_DIFFERENCE:
                raise ValueError(f"{row} has {key} {own:.2f}, PyTorch {wanted:.2f}")


def tables(results: dict) -> dict[str, str]:
    """The figures of a results file as tables in Markdown, by name; none where nothing is."""
    metrics, measured = results.get("metrics", {}), results.get("runs", {})
    rows = [
        (f"`{row}`", [metrics.get(f"{GROUP}/{row}/{key}") for key in COLUMNS.values()])
        for row in ROWS
        if f"{GROUP}/{row}" in measured
    ]
    return {"export": markdown_table(["", *COLUMNS], rows)} if rows else {}


def show_table(output: str) -> None:
    """Prints the table; fills docs/export.md if the results are its."""
    found = tables(read_results(output))
    print(f"\n{found.get('export', '')}")
    if Path(output).resolve() == OUTPUT:
        fill_tables(OUTPUT.parents[1] / "export.md", found)


if __name__ == "__main__":
    arguments = parse_args()
    run_command(lambda: main(arguments))
