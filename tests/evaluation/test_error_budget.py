"""The error budget: counts by loops, rows by hand, an oracle that is right, nothing changed."""

from __future__ import annotations

import math

import pytest
import torch
from scene_cases import K, coco, person
from torch import nn

from mpn_d2.data.datasets import load_pose_dicts
from mpn_d2.evaluation.assembly import assemble_scenes, evaluate_poses
from mpn_d2.evaluation.error_budget import MARGINS, error_budget, promises_one_to_one
from mpn_d2.evaluation.owners import count_collisions, count_outside, own_joints
from mpn_d2.evaluation.scenes import annotated_scenes
from mpn_d2.modeling.assembly import PoseAssembler, build_pose_assembler
from mpn_d2.modeling.assembly.evidence import Evidence, Rating
from mpn_d2.modeling.assembly.grid_networks import SOFTMAX_SCOPES
from mpn_d2.modeling.assembly.matching import (
    HungarianMatching,
    MutualBestMatching,
    ReferenceMatching,
)
from mpn_d2.structures.skeleton import get_skeleton

SIGMAS = get_skeleton("coco").sigmas
CONFIG = "MultiPoseNet/Base-MultiPoseNet.yaml"
ROWS = {
    "base",
    "collisions",
    "outside_box",
    *(f"margin_{margin}" for margin in MARGINS),
    "box_filter",
    *(f"matching_{m}" for m in ("reference", "reference_letter", "mutual_best", "hungarian")),
    "oracle_score",
    *(f"softmax_{scope}" for scope in SOFTMAX_SCOPES),
    "keypoints_1-5",
    "keypoints_6-10",
    f"keypoints_11-{K}",
    "overlap_0.0-0.1",
    "overlap_0.1-0.5",
    "overlap_from_0.5",
    "oracle",
    "oracle_hungarian",
    "oracle_hungarian_margin_1.0",
    *(f"sources/{k}_keypoints+{b}_boxes" for k in ("gt", "file") for b in ("gt", "file")),
}


@pytest.fixture()
def dataset(register_coco):
    """(name, dicts): people who overlap, one with few joints, a crowd, one without joints."""
    people = [
        person(1, 10, 20),
        person(1, 36, 29),
        person(1, 300, 20, joints=4),
        person(2, 10, 20, joints=8),
        person(2, 0, 0, sides=(400, 300), iscrowd=1),
        person(2, 60, 30, joints=0),
    ]
    name = register_coco(coco(people))
    return name, load_pose_dicts([name], is_train=False, need_images=False)


def identity(paper_config, *opts):
    cfg = paper_config(CONFIG, ["MODEL.ASSEMBLER.EVIDENCE", "identity", *opts])
    return cfg, build_pose_assembler(cfg)


def inside(point, box, margin):
    (x, y), (x1, y1, x2, y2) = point, box
    slack_x, slack_y = margin * (x2 - x1), margin * (y2 - y1)
    return x1 - slack_x < x < x2 + slack_x and y1 - slack_y < y < y2 + slack_y


def cell(point, box, size):
    """Row and column, spec 5.4."""
    x = int((point[0] - box[0]) * size[1] / math.ceil(box[2] - box[0]))
    y = int((point[1] - box[1]) * size[0] / math.ceil(box[3] - box[1]))
    return min(max(y, 0), size[0] - 1), min(max(x, 0), size[1] - 1)


def crowded_scenes(dataset):
    """Annotated scenes with joints moved about, some far outside their box."""
    scenes = annotated_scenes(dataset[1], K)
    generator = torch.Generator().manual_seed(5)
    for scene in scenes:
        shape = scene.candidates.points.shape
        scene.candidates.points += (60 * torch.randn(shape, generator=generator)).round()
    return scenes


@pytest.mark.parametrize("margin", [0.0, 0.21, 0.6])
def test_joints_outside_by_a_loop(dataset, margin):
    scenes = crowded_scenes(dataset)
    expected = 0
    for scene in scenes:
        for owner, point in zip(scene.owners.tolist(), scene.candidates.points.tolist()):
            box = scene.boxes[scene.people.tolist().index(owner)].tolist()
            expected += not inside(point, box, margin)
    assert expected > 5 and count_outside(scenes, K, margin) == expected


@pytest.mark.parametrize("size", [(56, 36), (3, 2)])
def test_collisions_by_a_loop(dataset, paper_config, size):
    scenes = crowded_scenes(dataset)
    expected = 0
    for scene in scenes:
        found = scene.candidates
        for box in scene.boxes.tolist():
            cells = [
                (kind, *cell(point, box, size))
                for kind, point in zip(found.types.tolist(), found.points.tolist())
                if inside(point, box, 0.21)
            ]
            expected += len(cells) - len(set(cells))
    _, assembler = identity(paper_config)
    batch = assembler.collate([s.candidates for s in scenes], [s.boxes for s in scenes])
    assert count_collisions(batch, size, 0.21) == expected
    assert (expected > 2) == (size[0] < 10)


def test_own_joints_by_a_loop(dataset):
    for scene in annotated_scenes(dataset[1], K, filter_boxes=True):
        expected = torch.zeros(len(scene.people), K, 3)
        for row, someone in enumerate(scene.people.tolist()):
            for i in range(len(scene.candidates)):
                if scene.owners[i] == someone:
                    x, y = scene.candidates.points[i].tolist()
                    expected[row, scene.candidates.types[i]] = torch.tensor([x, y, 1.0])
        assert torch.equal(own_joints(scene, K), expected)


def test_oracle_is_right_where_nobody_is_near(register_coco, paper_config, capsys):
    people = [person(1, 10, 20), person(1, 300, 20), person(2, 50, 60, joints=7)]
    name = register_coco(coco(people))
    dicts = load_pose_dicts([name], is_train=False, need_images=False)
    cfg, assembler = identity(paper_config)
    figures = error_budget(cfg, assembler, dicts, name)
    assert {name.split("/", 1)[1].rpartition("/")[0] for name in figures} == ROWS
    for row in ("base", "oracle", "oracle_hungarian", "oracle_score", "box_filter", "margin_0.4"):
        assert figures[f"error_budget/{row}/AP"] == pytest.approx(100.0)
        assert figures[f"error_budget/{row}/owner_share"] == pytest.approx(100.0)
    for row in ("collisions", "outside_box", "margin_1.0", "box_filter", "overlap_from_0.5"):
        assert figures[f"error_budget/{row}/count"] == 0
    assert figures["error_budget/overlap_from_0.5/AP"] is None
    printed = capsys.readouterr().out.splitlines()
    assert len([line for line in printed if line.startswith("| ")]) == len(ROWS) + 2
    assert "| file | file |      - |      - |" in printed


def test_each_row_is_its_correction_alone(dataset, paper_config):
    name, dicts = dataset
    cfg, assembler = identity(paper_config, "MODEL.ASSEMBLER.MATCHING", "reference")
    figures = error_budget(cfg, assembler, dicts, name)

    def expected(*opts, filter_boxes=False):
        model = identity(paper_config, "MODEL.ASSEMBLER.MATCHING", "reference", *opts)[1]
        scenes = annotated_scenes(dicts, K, filter_boxes=filter_boxes)
        poses = assemble_scenes(model, scenes, one_to_one=promises_one_to_one(model))
        metrics = evaluate_poses(name, scenes, poses, SIGMAS)
        return pytest.approx((metrics["AP"], metrics["owner_share"]))

    def found(row):
        return tuple(figures[f"error_budget/{row}/{key}"] for key in ("AP", "owner_share"))

    assert found("base") == expected() == found("matching_reference")
    assert found("matching_reference_letter") == expected("MODEL.ASSEMBLER.ONE_TO_ONE", "False")
    assert found("matching_hungarian") == expected("MODEL.ASSEMBLER.MATCHING", "hungarian")
    assert found("matching_mutual_best") == expected("MODEL.ASSEMBLER.MATCHING", "mutual_best")
    assert found("margin_0.6") == expected("MODEL.PRN.BOX_MARGIN", "0.6")
    assert found("box_filter") == expected(filter_boxes=True)
    fine = ["MODEL.PRN.CROP", "(112, 72)", "MODEL.PRN.INPUT_SIGMA", "2.0"]
    assert found("collisions") == expected(*fine, "MODEL.ASSEMBLER.WINDOW", "31")
    assert figures["error_budget/box_filter/count"] == 2
    assert figures["error_budget/keypoints_1-5/count"] == 1
    assert figures["error_budget/keypoints_6-10/count"] == 1
    assert figures[f"error_budget/keypoints_11-{K}/count"] == 2
    assert figures["error_budget/overlap_from_0.5/count"] == 2
    assert figures["error_budget/softmax_global/AP"] is None
    assert figures["error_budget/oracle_score/AP"] >= figures["error_budget/base/AP"]
    assert figures["error_budget/oracle/AP"] > figures["error_budget/base/AP"]


def test_softmax_rows_of_a_prn_and_nothing_is_changed(dataset, paper_config):
    name, dicts = dataset
    cfg = paper_config(CONFIG, ["MODEL.PRN.NODES", "8", "MODEL.PRN.SOFTMAX", "global"])
    assembler = build_pose_assembler(cfg).train()
    evidence, matching = assembler.evidence, assembler.matching
    weights = [w.clone() for w in assembler.state_dict().values()]
    figures = error_budget(cfg, assembler, dicts, name)
    base = figures["error_budget/base/AP"]
    assert figures["error_budget/softmax_global/AP"] == pytest.approx(base)
    assert figures["error_budget/softmax_channel/AP"] is not None
    assert figures["error_budget/collisions/AP"] is None
    assert assembler.training and assembler.matching is matching
    assert evidence.network.softmax == "global" and evidence.grid_input.margin == evidence.margin
    assert evidence.margin == cfg.MODEL.PRN.BOX_MARGIN and evidence.size == (56, 36)
    assert all(map(torch.equal, weights, assembler.state_dict().values()))


class Blind(Evidence):
    """Thinks that later candidates fit better, whatever the box, and has no grid."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def rate(self, batch, maps=None, *, peaks=False, oks=False):
        return Rating((batch.ids[batch.image] + 1).float())


def test_evidence_without_grid(dataset, paper_config):
    name, dicts = dataset
    assembler = PoseAssembler(evidence=Blind(), matching=MutualBestMatching(), num_keypoints=K)
    figures = error_budget(identity(paper_config)[0], assembler, dicts, name)
    assert figures["error_budget/oracle/AP"] == pytest.approx(100.0)
    assert figures["error_budget/oracle/owner_share"] == pytest.approx(100.0)
    assert figures["error_budget/base/AP"] < 70
    assert figures["error_budget/margin_0.4/AP"] is None
    assert figures["error_budget/margin_0.4/count"] == 0


def test_evidence_without_grid_whose_joints_lie_at_peaks(dataset, paper_config):
    name, dicts = dataset
    options = ["MODEL.ASSEMBLER.MATCHING", "argmax", "MODEL.ASSEMBLER.FALLBACK", "argmax"]
    cfg = paper_config("MultiPoseNet/Assembler_coco.yaml", options)
    figures = error_budget(cfg, build_pose_assembler(cfg), dicts, name)
    assert figures["error_budget/oracle/AP"] == pytest.approx(100.0)
    assert figures["error_budget/oracle_hungarian/AP"] == pytest.approx(100.0)


def test_sources(dataset, paper_config):
    """Files that hold the truth give the figure of the truth."""
    name, dicts = dataset
    cfg, assembler = identity(paper_config)
    scenes = annotated_scenes(dicts, K)
    ones = [torch.ones(len(scene.boxes)) for scene in scenes]
    boxed = [type(s)(**{**vars(s), "box_scores": o}) for s, o in zip(scenes, ones)]
    figures = error_budget(cfg, assembler, dicts, name, from_files={"boxes": boxed})
    sources = {n.split("/")[2]: v for n, v in figures.items() if "/sources/" in n and "AP" in n}
    base = figures["error_budget/base/AP"]
    assert sources == {
        "gt_keypoints+gt_boxes": base,
        "gt_keypoints+file_boxes": pytest.approx(base),
        "file_keypoints+gt_boxes": None,
        "file_keypoints+file_boxes": None,
    }


def test_nobody_annotated_in_any_image(register_coco, paper_config):
    name = register_coco(coco([person(1, iscrowd=1), person(2, joints=0)]))
    dicts = load_pose_dicts([name], is_train=False, need_images=False)
    figures = error_budget(*identity(paper_config), dicts, name)
    assert {v for k, v in figures.items() if k.endswith(("AP", "owner_share"))} == {None}


def test_what_is_one_to_one(paper_config):
    assembler = identity(paper_config)[1]
    for matching in (ReferenceMatching(), MutualBestMatching(), HungarianMatching()):
        assembler.matching = matching
        assert promises_one_to_one(assembler)
    assembler.fallback = "argmax"
    assert not promises_one_to_one(assembler)
    assembler.fallback = "none"
    assembler.matching = ReferenceMatching(one_to_one=False)
    assert not promises_one_to_one(assembler)
    argmax = identity(paper_config, "MODEL.ASSEMBLER.MATCHING", "argmax")[1]
    assert not promises_one_to_one(argmax)
