#!/usr/bin/env python
"""All figures on assembling people: trains every assembler, evaluates it, writes its figures.

    python tools/train_assembly.py --runs RUNS                       # everything, hours
    python tools/train_assembly.py --runs RUNS --only Assembler_poses PRN_poses max_poses

DETECTRON2_DATASETS names the folder of coco_poses/ and coco_poses_full/. Each row trains by one
config of configs/MultiPoseNet (those without weights do not train), assembles annotated keypoints
in annotated boxes, and writes its figures into --output/results/assembly.json; those of other rows
stay. A row that was interrupted goes on when the command is repeated.
"""

from __future__ import annotations

import argparse
import os
import sys
from argparse import Namespace
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import mpn_d2  # isort: skip  # first: it silences what Detectron2 warns of  # noqa: F401

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from torch import nn

from mpn_d2.config import load_config
from mpn_d2.data.datasets import load_pose_dicts, register_pose_datasets
from mpn_d2.data.own_datasets import register_own_datasets
from mpn_d2.engine.assembler_weights import load_assembler
from mpn_d2.engine.cli import run_command
from mpn_d2.engine.setup import start_run
from mpn_d2.engine.showcase import RunClock, goes_on
from mpn_d2.engine.stages import FINAL, train
from mpn_d2.evaluation.assembly import assemble_scenes, evaluate_poses
from mpn_d2.evaluation.detections import simulated_detections
from mpn_d2.evaluation.error_budget import promises_one_to_one
from mpn_d2.evaluation.held_out import hold_out
from mpn_d2.evaluation.noise import NOISE_ROWS, NOISE_SEED, noise_table
from mpn_d2.evaluation.scenes import annotated_scenes
from mpn_d2.modeling.assembly import build_matching, build_pose_assembler
from mpn_d2.modeling.assembly.weights import has_weights
from mpn_d2.structures.skeleton import get_skeleton
from mpn_d2.utils.doc_tables import fill_tables, markdown_table
from mpn_d2.utils.results import read_results, update_results

REPO = Path(__file__).resolve().parents[1]
RESULTS = "assembly.json"
CONFIGS = REPO / "configs" / "MultiPoseNet"
# Part of train2017's images, to choose by.
HELD_OUT = "train2017_dev"
SPLITS = {
    "coco_poses_val": "coco_poses_val",
    "val2017_half": "coco_poses_full_val2017_half",
    HELD_OUT: HELD_OUT,
}
# Where configs <name>_<data> are tested.
SPLIT_OF = {"poses": "coco_poses_val", "coco": "val2017_half"}
# Matchings that every trained row is tried with, beside its config's own.
MATCHINGS = ("reference", "mutual_best", "hungarian")
# What a pose's score may be made of, with annotated boxes ("keypoints": 1 for all complete poses).
POSE_SCORES = (
    ("keypoints",),
    ("evidence",),
    ("keypoints", "evidence"),
    ("oks",),
    ("evidence", "oks"),
)
# The same with detected ones.
DETECTED_SCORES = tuple(
    (*box, *rest)
    for rest in (("keypoints",), ("evidence",), ("keypoints", "evidence"), ("oks",))
    for box in ((), ("box",))
)
# One short schedule for the rows of the paper's ablation (spec E6) and for those of our ideas.
# Sorted, a third of an epoch would hold complete people alone.
SHORT_PRN = ["SOLVER.MAX_ITER", "700", "TEST.EVAL_PERIOD", "0", "MODEL.PRN.CURRICULUM", "none"]
SHORT_PAIRS = ["SOLVER.MAX_ITER", "1200", "TEST.EVAL_PERIOD", "0"]


@dataclass(frozen=True)
class Row:
    """One assembler that is trained (if it learns) and evaluated.

    Attributes:
        config: name of a file in configs/MultiPoseNet.
        split: of SPLITS; HELD_OUT trains on train2017 without the images of that split.
        options: changes of the config.
        group: prefix of the figures below the split; None: the config's name.
        matchings: that it is evaluated with; none: its config's own.
        noise: also evaluate degraded input.
        pose_scores: also evaluate other scores of poses.
        detections: also evaluate scores of poses on simulated detections.
    """

    config: str
    split: str
    options: list[str] = field(default_factory=list)
    group: str | None = None
    matchings: tuple[str, ...] = ()
    noise: bool = False
    pose_scores: tuple[tuple[str, ...], ...] = ()
    detections: bool = False


def rows() -> dict[str, Row]:
    """All rows by name, quick ones first."""
    found = {}
    for data, split in SPLIT_OF.items():
        noise = data == "coco"
        for evidence in ("identity", "max"):
            options = ["MODEL.ASSEMBLER.EVIDENCE", evidence]
            found[f"{evidence}_{data}"] = Row(
                f"PRN_{data}", split, options, matchings=MATCHINGS, noise=noise
            )
        for name in ("UCR", "Assembler", "PRN"):
            config = f"{name}_{data}"
            scores = POSE_SCORES if name == "Assembler" else ()
            found[config] = Row(config, split, matchings=MATCHINGS, noise=noise, pose_scores=scores)
    for nodes, dropout, residual in (
        (50, 0.5, True),
        (256, 0.5, True),
        (1024, 0.5, True),
        (1024, 0.0, True),
        (1024, 0.5, False),
    ):
        evidence = "prn" if residual else "prn_nonresidual"
        changes = ["MODEL.PRN.NODES", str(nodes), "MODEL.PRN.DROPOUT", str(dropout)]
        changes += ["MODEL.ASSEMBLER.EVIDENCE", evidence, *SHORT_PRN]
        label = f"E6/{nodes}_{dropout:g}_{'residual' if residual else 'plain'}"
        found[label] = Row("PRN_coco", "val2017_half", changes, group=label)
    for label, changes in IDEAS.items():
        options = [*changes, *SHORT_PAIRS]
        found[f"ideas/{label}"] = Row(
            "Assembler_coco",
            HELD_OUT,
            options,
            group=f"ideas/{label}",
            detections=label == "as_committed",
        )
    return found


# What was tried for our assembler, each by itself.
IDEAS = {
    "as_committed": [],
    "prior_alone": ["MODEL.ASSEMBLER.LEARNED.ROUNDS", "0"],
    "one_round": ["MODEL.ASSEMBLER.LEARNED.ROUNDS", "1"],
    "two_rounds": ["MODEL.ASSEMBLER.LEARNED.ROUNDS", "2"],
    "four_rounds": ["MODEL.ASSEMBLER.LEARNED.ROUNDS", "4"],
    "nobody_left_out": ["MODEL.ASSEMBLER.LEARNED.LEAST", "0.0"],
    "no_noise": ["INPUT.NOISE.PROB", "0.0"],
    "narrow": ["MODEL.ASSEMBLER.LEARNED.WIDTH", "32"],
}


Metrics = dict[str, float | None]


def tables(metrics: Metrics) -> dict[str, str]:
    """The tables of docs/assembly.md by name, in Markdown."""
    return {
        "poses": evidence_table(metrics, "poses"),
        "coco": evidence_table(metrics, "coco"),
        "E6": group_table(metrics, "E6"),
        "ideas": group_table(metrics, "ideas"),
        "scores": score_table(metrics),
        "detections": detections_table(metrics),
        "noise": noise_rows_table(metrics),
        "speed": speed_table(metrics),
    }


def read_metrics(folder: Path) -> Metrics:
    """All figures that the tables show: of this command and of tools/benchmark.py."""
    metrics: Metrics = {}
    for name in (RESULTS, "benchmark_assembly.json"):
        metrics |= read_results(folder / name).get("metrics", {})
    return metrics


def speed_table(metrics: Metrics) -> str:
    """Milliseconds of one image, and as a multiple of the PRN's products."""
    products = metrics.get("assembly/seconds/prn_products/20")
    lines = []
    for evidence in ("prn", "ucr", "learned"):
        few, many = (metrics.get(f"assembly/seconds/{evidence}/{n}") for n in (20, 100))
        known = None not in (few, many, products)
        figures = [1e3 * few, 1e3 * many, 100 * few / products, many / few] if known else [None] * 4
        lines.append((f"`{evidence}`", figures))
    lines.append(("the PRN's two products alone", [products and 1e3 * products, None, None, None]))
    head = ["", "20 people, ms", "100 people, ms", "20, % of the products", "100 / 20"]
    return markdown_table(head, lines)


def evidence_table(metrics: Metrics, data: str) -> str:
    """Evidence against matchings."""
    lines = []
    for config, evidence in (
        (f"PRN_{data}", "identity"),
        (f"PRN_{data}", "max"),
        (f"UCR_{data}", "ucr"),
        (f"PRN_{data}", "prn"),
        (f"Assembler_{data}", "learned"),
    ):
        group = f"{SPLIT_OF[data]}/{config}/{evidence}+"
        figures = [metrics.get(f"{group}{matching}/AP") for matching in MATCHINGS]
        share = metrics.get(f"{group}{MATCHINGS[-1]}/owner_share")
        lines.append((f"`{evidence}` ({config})", [*figures, share]))
    head = ["evidence", *MATCHINGS, "to their owner (hungarian), %"]
    return markdown_table(head, lines)


def group_table(metrics: Metrics, name: str) -> str:
    """The rows named <name>/..."""
    lines = [
        (
            f"`{row.removeprefix(f'{name}/')}`",
            [metrics.get(f"{found.split}/{row}/{key}") for key in ("AP", "owner_share")],
        )
        for row, found in rows().items()
        if row.startswith(f"{name}/")
    ]
    return markdown_table(["", "AP", "to their owner, %"], lines)


def score_table(metrics: Metrics) -> str:
    """What a pose's score is made of."""
    groups = [f"{SPLIT_OF[data]}/pose_score/Assembler_{data}" for data in ("coco", "poses")]
    lines = [
        (
            f"`[{', '.join(names)}]`",
            [metrics.get(f"{group}/{'_x_'.join(names)}/AP") for group in groups],
        )
        for names in POSE_SCORES
    ]
    return markdown_table(["AP by `POSE_SCORE`", "Assembler_coco", "Assembler_poses"], lines)


def detections_table(metrics: Metrics) -> str:
    """What a pose's score is made of, with detected keypoints and boxes."""
    lines = [
        (
            f"`[{', '.join(names)}]`",
            [metrics.get(f"{HELD_OUT}/detections/{'_x_'.join(names)}/AP")],
        )
        for names in DETECTED_SCORES
    ]
    return markdown_table(["AP by `POSE_SCORE`", "simulated detections"], lines)


def noise_rows_table(metrics: Metrics) -> str:
    """Degraded input against assemblers."""
    systems = ("identity", "max", "UCR_coco", "PRN_coco", "Assembler_coco")
    lines = [
        (row, [metrics.get(f"val2017_half/noise/{row}/{system}/AP") for system in systems])
        for row in NOISE_ROWS
    ]
    return markdown_table(["AP", *systems], lines)


def parse_args(arguments: list[str] | None = None) -> Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", required=True, metavar="DIR", help="trainings go there")
    parser.add_argument("--output", default=str(REPO / "docs"), help="results/ in it")
    parser.add_argument("--only", nargs="+", metavar="ROW", help=f"of {', '.join(rows())}")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs")
    return parser.parse_args(arguments)


def main(args: Namespace) -> None:
    register_pose_datasets()
    known = rows()
    unknown = sorted(set(args.only or []) - set(known))
    if unknown:
        raise ValueError(f"--only {unknown[0]}: rows are {', '.join(known)}")
    results = Path(args.output) / "results" / RESULTS
    for name, row in known.items():
        if not args.only or name in args.only:
            run(name, row, Path(args.runs) / "assembly", results, args.opts)
    page = Path(args.output) / "assembly.md"
    if page.is_file():
        fill_tables(page, tables(read_metrics(results.parent)))


def run(name: str, row: Row, runs: Path, results: Path, options: list[str]) -> None:
    """Trains and evaluates a row, and records its figures."""
    print(f"== {name}", flush=True)
    folder = runs / name
    # From scratch, not from the weights that come with the package.
    options = ["MODEL.ASSEMBLER.WEIGHTS", "", *row.options, *options, "OUTPUT_DIR", str(folder)]
    if row.split == HELD_OUT:
        options = held_out_options(runs / "held_out") + options
    cfg = load_config(str(CONFIGS / f"{row.config}.yaml"), options)
    cfg.freeze()
    register_own_datasets(cfg)
    assembler, seconds = trained_assembler(cfg, options)
    dicts = load_pose_dicts([SPLITS[row.split]], is_train=False, need_images=False)
    own = cfg.MODEL.ASSEMBLER.MATCHING
    record = {"seed": cfg.SEED, "seconds": seconds, "iterations x batch": schedule(cfg)}
    for matching in dict.fromkeys([own, *row.matchings]):
        assembler.matching = build_matching(with_matching(cfg, matching))
        figures = evaluate(cfg, assembler, dicts, SPLITS[row.split])
        kind = f"{cfg.MODEL.ASSEMBLER.EVIDENCE}+{matching}"
        group = row.group or f"{row.config}/{kind}"
        update_results(results, f"{row.split}/{group}", figures, **record)
        print(f"{row.split}/{group}: AP {figures['AP']}", flush=True)
    assembler.matching = build_matching(with_matching(cfg, own))
    for names in row.pose_scores:
        assembler.pose_score = names
        figures = evaluate(cfg, assembler, dicts, SPLITS[row.split])
        group = f"{row.split}/pose_score/{row.config}/{'_x_'.join(names)}"
        update_results(results, group, figures, **record)
    assembler.pose_score = tuple(cfg.MODEL.ASSEMBLER.POSE_SCORE)
    if row.detections:
        for group, figures in detection_rows(cfg, assembler, dicts, SPLITS[row.split]).items():
            update_results(results, f"{row.split}/detections/{group}", figures, **record)
    if row.noise:
        table = noise_table(cfg, assembler, dicts, SPLITS[row.split])
        label = row.config if has_weights(assembler) else cfg.MODEL.ASSEMBLER.EVIDENCE
        for damage in {key.split("/")[1] for key in table}:
            figures = {k: table[f"noise/{damage}/{k}"] for k in ("AP", "owner_share")}
            update_results(results, f"{row.split}/noise/{damage}/{label}", figures, **record)
    if row.group is None and has_weights(assembler):
        # UCR's numbers are a buffer.
        number = sum(t.numel() for t in assembler.state_dict().values() if t.numel() > 1)
        update_results(results, "params", {row.config: number}, keep=True, **record)


def held_out_options(folder: Path) -> list[str]:
    """Config options that train on most of train2017 and test on the rest; writes both files."""
    hold_out(MetadataCatalog.get("coco_poses_full_train2017").json_file, folder, one_in=28)
    options = []
    for key, part, dataset in (("TRAIN", "fit", "train2017_fit"), ("TEST", "dev", HELD_OUT)):
        options += [f"DATASETS.OWN.{dataset}.JSON", str(folder / f"{part}.json")]
        options += [f"DATASETS.{key}", f"('{dataset}',)"]
    return options


def trained_assembler(cfg: CfgNode, options: list[str]) -> tuple[nn.Module, float]:
    """The assembler of a config after its training, on the CPU, and the seconds that took."""
    if not has_weights(build_pose_assembler(cfg)):
        return load_assembler(cfg), 0.0
    folder = Path(cfg.OUTPUT_DIR)
    resume = goes_on(cfg)
    clock = RunClock(folder / "seconds.json", resume=resume)
    start_run(cfg, Namespace(config_file="", opts=options))
    train(cfg, "all", options, resume=resume)
    return load_assembler(cfg, str(folder / FINAL)), clock.stop()


def evaluate(
    cfg: CfgNode, assembler: nn.Module, dicts: list[dict], dataset_name: str
) -> dict[str, float | None]:
    """COCO's metrics and owner_share of annotated keypoints in all annotated boxes."""
    skeleton = get_skeleton(cfg.MODEL.SKELETON)
    scenes = annotated_scenes(dicts, skeleton.num_keypoints, filter_boxes=cfg.EVAL.GT_BOX_FILTER)
    poses = assemble_scenes(assembler, scenes, one_to_one=promises_one_to_one(assembler))
    return evaluate_poses(dataset_name, scenes, poses, skeleton.sigmas)


def detection_rows(
    cfg: CfgNode, assembler: nn.Module, dicts: list[dict], dataset_name: str
) -> dict[str, dict[str, float | None]]:
    """COCO's metrics of scores of poses, on simulated detections; the assembler stays as it is."""
    skeleton = get_skeleton(cfg.MODEL.SKELETON)
    scenes = simulated_detections(dicts, skeleton, seed=NOISE_SEED)
    own, rows = assembler.pose_score, {}
    for names in DETECTED_SCORES:
        assembler.pose_score = names
        poses = assemble_scenes(assembler, scenes)
        figures = evaluate_poses(dataset_name, scenes, poses, skeleton.sigmas)
        rows["_x_".join(names)] = figures
        print(f"{names}: AP {figures['AP']}", flush=True)
    assembler.pose_score = own
    return rows


def with_matching(cfg: CfgNode, matching: str) -> CfgNode:
    """The config with another MODEL.ASSEMBLER.MATCHING."""
    changed = cfg.clone()
    changed.defrost()
    changed.MODEL.ASSEMBLER.MATCHING = matching
    changed.freeze()
    return changed


def schedule(cfg: CfgNode) -> str:
    """Iterations x batch."""
    return f"{cfg.SOLVER.MAX_ITER} x {cfg.SOLVER.IMS_PER_BATCH}"


if __name__ == "__main__":
    os.environ.setdefault("DETECTRON2_DATASETS", str(REPO / ".." / "shared" / "data"))
    args = parse_args()
    run_command(lambda: main(args))
