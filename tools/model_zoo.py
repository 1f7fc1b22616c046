#!/usr/bin/env python
"""Makes a table of trained networks from the folders of their runs; fills docs/model_zoo.md.

    python tools/model_zoo.py RUN [NAME=RUN ...] [--output F.json] [--page F.md]

A run is an OUTPUT_DIR of train_net.py with its config.yaml, model_final.pth and results.json (what
the evaluation at the end of a training, or `train_net.py --eval-only OUTPUT_DIR RUN`, leaves
there). Its row tells what it was trained and tested on, AP and IoU, parameters, and the file's
size and SHA-256. It is named by the folder unless a NAME is given. Rows of other runs in the
results file stay; a run of the same name is replaced.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from detectron2.config import CfgNode

from mpn_d2.config import load_config
from mpn_d2.engine.build import build_pose_model
from mpn_d2.engine.cli import run_command
from mpn_d2.engine.stages import FINAL
from mpn_d2.utils.doc_tables import fill_tables
from mpn_d2.utils.results import flat_metrics, format_figure, read_results, update_results

REPO = Path(__file__).resolve().parents[1]
RESULTS = REPO / "docs" / "results" / "model_zoo.json"
PAGE = REPO / "docs" / "model_zoo.md"
COLUMNS = ("keypoints/AP", "bbox/AP", "segm/AP", "sem_seg/IoU-person")
HEAD = ["run", "system", "trained on", "tested on", *COLUMNS, "10^6 parameters", "MB", "SHA-256"]


def read_run(folder: Path) -> tuple[dict[str, float | None], dict[str, str]]:
    """Figures and description of a run.

    Raises:
        FileNotFoundError: a file of the run is missing; names it and what makes it.
        ValueError: a file that is not what its name says.
    """
    files = [folder / name for name in ("config.yaml", FINAL, "results.json")]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(
                f"{file} is missing: a run is an OUTPUT_DIR of a training that has ended; "
                f"results.json comes from train_net.py --eval-only OUTPUT_DIR {folder}"
            )
    cfg = load_config(str(files[0]), ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""])
    dataset, results = _results(files[2])
    metrics = {name: results.get(name) for name in COLUMNS}
    metrics["parameters"] = sum(x.numel() for x in build_pose_model(cfg).parameters())
    metrics["megabytes"] = round(files[1].stat().st_size / 1e6, 1)
    about = {
        "system": cfg.MODEL.META_ARCHITECTURE,
        "trained_on": ", ".join(_trained_on(cfg)),
        "tested_on": dataset,
        "sha256": sha256(files[1]),
    }
    return metrics, about


def _results(file: Path) -> tuple[str, dict[str, float | None]]:
    """The first test dataset and its figures."""
    try:
        content = json.loads(file.read_text())
        dataset, found = next(iter(content.items()))
        return dataset, flat_metrics(found)
    except (ValueError, AttributeError, StopIteration, TypeError) as error:
        raise ValueError(
            f"{file} is no results file of an evaluation, {{dataset: {{task: {{metric: value}}}}}}"
        ) from error


def _trained_on(cfg: CfgNode) -> list[str]:
    """Names of the training datasets of all stages, each once."""
    stages = [cfg.STAGES[name.upper()] for name in cfg.STAGES.ORDER]
    own = [name for x in stages for name in x.get("DATASETS", {}).get("TRAIN", ())]
    return list(dict.fromkeys([*cfg.DATASETS.TRAIN, *own]))


def sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def tables(results: dict) -> dict[str, str]:
    """The page's table from the figures."""
    metrics = results.get("metrics", {})
    lines = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    for name, about in results.get("runs", {}).items():
        figures = [format_figure(metrics[f"{name}/{column}"]).strip() for column in COLUMNS]
        size = [f"{metrics[f'{name}/parameters'] / 1e6:.1f}", f"{metrics[f'{name}/megabytes']:.0f}"]
        cells = [f"`{name}`", about["system"], about["trained_on"], about["tested_on"]]
        lines.append("| " + " | ".join([*cells, *figures, *size, about["sha256"][:12]]) + " |")
    return {"runs": "\n".join(lines)}


def named_folder(run: str) -> tuple[str, Path]:
    """Name and folder of FOLDER or NAME=FOLDER; a folder whose own name has a = is a folder."""
    name, equals, folder = run.partition("=")
    if equals and name and not Path(run).is_dir():
        return name, Path(folder)
    return Path(run).resolve().name, Path(run)


def main(args: argparse.Namespace) -> None:
    start = time.perf_counter()
    folders: dict[str, Path] = {}
    for run in args.runs:
        name, folder = named_folder(run)
        if name in folders:
            raise ValueError(f"two runs are called {name}: name one of them, NAME={folder}")
        folders[name] = folder
    read = {name: read_run(folder) for name, folder in folders.items()}
    for name, (metrics, about) in read.items():
        seconds = time.perf_counter() - start
        update_results(args.output, name, metrics, seconds=seconds, seed=0, **about)
        print(f"{name}: keypoint AP {format_figure(metrics['keypoints/AP']).strip()}")
    if args.page:
        fill_tables(args.page, tables(read_results(args.output)))


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="[NAME=]RUN")
    parser.add_argument("--output", default=str(RESULTS), metavar="F.json")
    parser.add_argument("--page", default=str(PAGE), metavar="F.md", help="its table is replaced")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run_command(lambda: main(parse_args()))
