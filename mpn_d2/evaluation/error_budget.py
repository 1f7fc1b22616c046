"""What costs an assembler how many points, on true keypoints in true boxes.

One correction at a time, each with AP; and the four sources, true or from a file, of keypoints and
boxes. Review notes sections 3.1 and 3.2. Letters: N images, B boxes, P boxes of one image,
K keypoint types, M candidates of one type in the fullest image.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from detectron2.config import CfgNode
from torch import nn

from mpn_d2.evaluation.assembly import assemble_scenes, scene_batches
from mpn_d2.evaluation.owners import Rate, count_collisions, count_outside, oracle
from mpn_d2.evaluation.people_scorer import PeopleScorer, joints_between, overlap_between
from mpn_d2.evaluation.scenes import Scene, annotated_scenes, check_one_to_one, owner_share
from mpn_d2.modeling.assembly.evidence import Rating
from mpn_d2.modeling.assembly.grid_input import PeaksInput
from mpn_d2.modeling.assembly.grid_networks import (
    SOFTMAX_SCOPES,
    IdentityNetwork,
    MaxNetwork,
    PoseResidualNetwork,
)
from mpn_d2.modeling.assembly.matching import (
    HungarianMatching,
    Matching,
    MutualBestMatching,
    ReferenceMatching,
)
from mpn_d2.modeling.assembly.people_batch import PeopleBatch
from mpn_d2.structures.outputs import AssembledPoses
from mpn_d2.structures.skeleton import get_skeleton
from mpn_d2.utils.results import format_figure

# BOX_MARGIN of the rows of joints outside their box (review notes 3.2: a sweep).
MARGINS = (0.4, 0.6, 1.0)
# Fewest labelled joints of the groups of people, and largest overlaps that part them.
JOINT_STEPS = (1, 6, 11)
OVERLAP_STEPS = (0.0, 0.1, 0.5)


@dataclass
class Row:
    """One line of the table; None where the assembler has no such thing.

    Attributes:
        name: in the names of the metrics.
        text: what is printed.
        ap: 0 to 100.
        owner_share: see `mpn_d2.evaluation.scenes.owner_share`.
        count: see `text`.
    """

    name: str
    text: str
    ap: float | None = None
    owner_share: float | None = None
    count: int | None = None


def error_budget(
    cfg: CfgNode,
    assembler: nn.Module,
    dataset_dicts: list[dict],
    dataset_name: str,
    *,
    filter_boxes: bool = False,
    from_files: dict[str, list[Scene]] | None = None,
) -> dict[str, float | None]:
    """Prints and returns AP after each correction alone, and of the four sources.

    Args:
        cfg: of the assembler.
        assembler: as it stands; unchanged afterwards.
        dataset_dicts: of `load_pose_dicts`, all images of the dataset.
        dataset_name: registered, whose annotations are the truth.
        filter_boxes: boxes of crowds and of people without joints are left out of every row.
        from_files: scenes with "keypoints", "boxes" or "both" of them from files, for the table of
            sources; what is missing there stays "-".

    Returns:
        flat metrics "error_budget/<row>/AP", "/owner_share" and "/count", and
        "error_budget/sources/<gt or file>_keypoints+<gt or file>_boxes/AP".
    """
    skeleton = get_skeleton(cfg.MODEL.SKELETON)
    bench = _Bench(
        assembler,
        annotated_scenes(dataset_dicts, skeleton.num_keypoints, filter_boxes=filter_boxes),
        PeopleScorer(dataset_name, skeleton.sigmas),
    )
    base_poses, matched = _matching_rows(bench)
    base = bench.row("base", "as it stands", base_poses)
    everybody = annotated_scenes(dataset_dicts, skeleton.num_keypoints)
    rows = [
        base,
        *_grid_rows(bench, tuple(cfg.MODEL.PRN.CROP), cfg.MODEL.PRN.BOX_MARGIN),
        _box_filter_row(bench, everybody),
        *matched,
        _oracle_score_row(bench, base_poses),
        *_softmax_rows(bench),
        *_group_rows(bench, everybody, base_poses),
        *_oracle_rows(bench),
    ]
    sources = _source_rows(bench, base, from_files or {})
    _print_rows(rows)
    _print_sources(sources)
    return _metrics([*rows, *sources])


class _Bench:
    """An assembler, the scenes it is tried on, and who scores its poses."""

    def __init__(self, assembler: nn.Module, scenes: list[Scene], scorer: PeopleScorer) -> None:
        self.assembler = assembler
        self.scenes = scenes
        self.scorer = scorer

    def row(
        self,
        name: str,
        text: str,
        poses: list[AssembledPoses] | None = None,
        *,
        scenes: list[Scene] | None = None,
        count: int | None = None,
    ) -> Row:
        """Scored poses of these scenes; without `poses` the assembler's."""
        scenes = self.scenes if scenes is None else scenes
        if poses is None:
            promised = promises_one_to_one(self.assembler)
            poses = assemble_scenes(self.assembler, scenes, one_to_one=promised)
        return Row(name, text, self.scorer.score(scenes, poses), owner_share(scenes, poses), count)

    @torch.no_grad()
    def assemble(self, matchings: Sequence[Matching], rate: Rate) -> list[list[AssembledPoses]]:
        """Poses of all scenes, by each matching from one rating."""
        model = self.assembler
        found: list[list[AssembledPoses]] = [[] for _ in matchings]
        with _in_eval_mode(model):
            for part, batch in self.batches():
                rating = rate(batch, part)
                for poses, matching in zip(found, matchings, strict=True):
                    with _changed([model], matching=matching):
                        poses += [_on_cpu(pose) for pose in model.assemble(batch, rating)]
        for poses, matching in zip(found, matchings, strict=True):
            with _changed([model], matching=matching):
                if promises_one_to_one(model):
                    check_one_to_one(self.scenes, poses)
        return found

    def batches(self) -> Iterator[tuple[list[Scene], PeopleBatch]]:
        """The scenes, some at a time, and the assembler's padded tensors of them."""
        device = self.assembler.evidence.device
        for part in scene_batches(self.scenes):
            candidates = [scene.candidates.to(device) for scene in part]
            yield part, self.assembler.collate(candidates, [s.boxes.to(device) for s in part])


def promises_one_to_one(assembler: nn.Module) -> bool:
    """Whether a candidate goes to one box at most and no joint is invented (design 7.1)."""
    matching = assembler.matching
    shares = matching.joints_at_peaks or not getattr(matching, "one_to_one", True)
    return assembler.fallback == "none" and not shares


def _matching_rows(bench: _Bench) -> tuple[list[AssembledPoses], list[Row]]:
    """Poses of the assembler as it stands, and a row for each matching by the same rating."""
    assembler = bench.assembler
    matchings = {
        "reference": ("the authors' greedy rule", ReferenceMatching()),
        "reference_letter": (
            "the same to the letter (NOT one-to-one)",
            ReferenceMatching(one_to_one=False),
        ),
        "mutual_best": ("mutual best", MutualBestMatching()),
        "hungarian": ("Hungarian", HungarianMatching()),
    }

    def rate(batch: PeopleBatch, part: list[Scene]) -> Rating:
        return assembler.rate(batch)

    parts = [assembler.matching, *(matching for _, matching in matchings.values())]
    base, *found = bench.assemble(parts, rate)
    return base, [
        bench.row(f"matching_{name}", f"matching: {text}", poses)
        for (name, (text, _)), poses in zip(matchings.items(), found, strict=True)
    ]


def _grid_rows(bench: _Bench, size: tuple[int, int], margin: float) -> list[Row]:
    """Joints in one cell, and joints outside their box; `size` and `margin` where none are used."""
    evidence = bench.assembler.evidence
    size, margin = getattr(evidence, "size", size), getattr(evidence, "margin", margin)
    kinds = bench.assembler.num_keypoints
    rows = [_collision_row(bench, size, margin)]
    outside = count_outside(bench.scenes, kinds, margin)
    rows.append(
        Row("outside_box", f"joints further than {margin} outside their box", count=outside)
    )
    bounded = _bounded(bench)
    for wide in MARGINS:
        name, text = f"margin_{wide}", f"boxes {wide} wider on each side; joints still outside"
        count = count_outside(bench.scenes, kinds, wide)
        if not bounded:
            rows.append(Row(name, text, count=count))
            continue
        with _changed(bounded, margin=wide):
            rows.append(bench.row(name, text, count=count))
    return rows


def _collision_row(bench: _Bench, size: tuple[int, int], margin: float) -> Row:
    """Candidates that share a cell stay two candidates here; a finer grid tells them apart."""
    evidence = bench.assembler.evidence
    count = sum(count_collisions(batch, size, margin) for _, batch in bench.batches())
    text = f"joints in the cell of another ({size[0]} x {size[1]}), still two candidates"
    network = getattr(evidence, "network", None)
    grid_input = getattr(evidence, "grid_input", None)
    if not isinstance(network, IdentityNetwork | MaxNetwork) or not isinstance(
        grid_input, PeaksInput
    ):
        return Row("collisions", text, count=count)
    twice = (2 * size[0], 2 * size[1])
    with contextlib.ExitStack() as changes:
        # Blurs and window keep their reach in the image.
        changes.enter_context(_changed([evidence, grid_input], size=twice))
        changes.enter_context(_changed([evidence], window=2 * evidence.window + 1))
        changes.enter_context(_changed([grid_input], sigma=2 * grid_input.sigma))
        if isinstance(network, MaxNetwork):
            changes.enter_context(_changed([network], sigma=2 * network.sigma))
        return bench.row("collisions", f"{text}; grid twice as fine", count=count)


def _box_filter_row(bench: _Bench, everybody: list[Scene]) -> Row:
    filtered = []
    for scene in everybody:
        keep = torch.bincount(scene.owners, minlength=len(scene.boxes)) > 0
        filtered.append(replace(scene, boxes=scene.boxes[keep], people=scene.people[keep]))
    dropped = sum(len(scene.boxes) for scene in everybody) - sum(len(s.boxes) for s in filtered)
    text = "without boxes of crowds and of people without joints"
    return bench.row("box_filter", text, scenes=filtered, count=dropped)


def _oracle_score_row(bench: _Bench, poses: list[AssembledPoses]) -> Row:
    rated = [
        replace(pose, scores=bench.scorer.best_oks(scene, pose))
        for scene, pose in zip(bench.scenes, poses, strict=True)
    ]
    return bench.row("oracle_score", "poses ranked by their true OKS", rated)


def _softmax_rows(bench: _Bench) -> list[Row]:
    network = getattr(bench.assembler.evidence, "network", None)
    rows = []
    for scope in SOFTMAX_SCOPES:
        name, text = f"softmax_{scope}", f"softmax {scope}, at test time alone"
        if isinstance(network, PoseResidualNetwork):
            with _changed([network], softmax=scope):
                rows.append(bench.row(name, text))
        else:
            rows.append(Row(name, text))
    return rows


def _group_rows(bench: _Bench, everybody: list[Scene], poses: list[AssembledPoses]) -> list[Row]:
    """AP of groups of people, in their own boxes."""
    groups = {}
    kinds = bench.assembler.num_keypoints
    for low, after in zip(JOINT_STEPS, [*(step - 1 for step in JOINT_STEPS[1:]), kinds]):
        if low <= kinds:
            high = min(after, kinds)
            text = f"people with {low} to {high} labelled joints"
            groups[f"keypoints_{low}-{high}"] = (text, joints_between(low, high))
    for least, most in zip(OVERLAP_STEPS, [*OVERLAP_STEPS[1:], math.inf]):
        name = f"overlap_from_{least}" if math.isinf(most) else f"overlap_{least}-{most}"
        bounds = f"from {least}" if math.isinf(most) else f"{least} to {most}"
        groups[name] = (
            f"people whose box overlaps another with IoU {bounds}",
            overlap_between(least, most),
        )
    rows = []
    for name, (text, group) in groups.items():
        ap, count = bench.scorer.score_group(everybody, bench.scenes, poses, group)
        rows.append(Row(name, text, ap, count=count))
    return rows


def _oracle_rows(bench: _Bench) -> list[Row]:
    """What perfect evidence reaches: alone, with the best matching, and in wide boxes too."""
    assembler, widest = bench.assembler, MARGINS[-1]
    rate, hungarian = oracle(assembler), HungarianMatching()
    text = "oracle: every box knows its own joints"
    poses, matched = bench.assemble([assembler.matching, hungarian], rate)
    rows = [
        bench.row("oracle", text, poses),
        bench.row("oracle_hungarian", f"{text}; Hungarian", matched),
    ]
    name, text = f"oracle_hungarian_margin_{widest}", f"{text}; Hungarian; boxes {widest} wider"
    bounded = _bounded(bench)
    if not bounded:
        return [*rows, Row(name, text)]
    with _changed(bounded, margin=widest):
        return [*rows, bench.row(name, text, bench.assemble([hungarian], rate)[0])]


def _bounded(bench: _Bench) -> list[nn.Module]:
    """Parts of the evidence that see candidates in a margin around a box alone."""
    return [part for part in bench.assembler.evidence.modules() if hasattr(part, "margin")]


def _source_rows(bench: _Bench, base: Row, from_files: dict[str, list[Scene]]) -> list[Row]:
    """Keypoints and boxes, each true or from a file."""
    rows = [replace(base, name="sources/gt_keypoints+gt_boxes", text="true | true")]
    for key, name, text in (
        ("boxes", "gt_keypoints+file_boxes", "true | file"),
        ("keypoints", "file_keypoints+gt_boxes", "file | true"),
        ("both", "file_keypoints+file_boxes", "file | file"),
    ):
        scenes = from_files.get(key)
        name = f"sources/{name}"
        rows.append(Row(name, text) if scenes is None else bench.row(name, text, scenes=scenes))
    return rows


def _print_rows(rows: list[Row]) -> None:
    print("\n| each alone | AP | more than as it stands | to their owner, % | count |")
    print("|---|---|---|---|---|")
    base = rows[0].ap
    for row in rows:
        gain = None if row.ap is None or base is None else round(row.ap - base, 1) + 0.0
        count = "-" if row.count is None else str(row.count)
        figures = map(format_figure, (row.ap, gain, row.owner_share))
        print(f"| {row.text} | {' | '.join(figures)} | {count:>6} |")


def _print_sources(rows: list[Row]) -> None:
    print("\n| keypoints | boxes | AP | to their owner, % |\n|---|---|---|---|")
    for row in rows:
        print(f"| {row.text} | {format_figure(row.ap)} | {format_figure(row.owner_share)} |")


def _metrics(rows: list[Row]) -> dict[str, float | None]:
    metrics: dict[str, float | None] = {}
    for row in rows:
        for key, value in (("AP", row.ap), ("owner_share", row.owner_share), ("count", row.count)):
            if key == "AP" or value is not None:
                metrics[f"error_budget/{row.name}/{key}"] = value
    return metrics


@contextlib.contextmanager
def _changed(modules: Sequence[nn.Module], **values: object) -> Iterator[None]:
    """Attributes of all these modules have other values for a while."""
    before = [{name: getattr(module, name) for name in values} for module in modules]
    try:
        for module in modules:
            for name, value in values.items():
                setattr(module, name, value)
        yield
    finally:
        for module, old in zip(modules, before, strict=True):
            for name, value in old.items():
                setattr(module, name, value)


@contextlib.contextmanager
def _in_eval_mode(module: nn.Module) -> Iterator[None]:
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)


def _on_cpu(pose: AssembledPoses) -> AssembledPoses:
    return AssembledPoses(pose.keypoints.cpu(), pose.scores.cpu(), pose.candidate_ids.cpu())
