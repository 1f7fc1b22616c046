"""Skeleton tables against pycocotools, the sample's annotation file and Detectron2's metadata."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Instances, Keypoints
from pycocotools.cocoeval import Params

from mpn_d2.structures.ground_truth import gt_candidates
from mpn_d2.structures.skeleton import Skeleton, get_skeleton


def test_coco_sigmas_are_pycocotools() -> None:
    np.testing.assert_allclose(get_skeleton("coco").sigmas, Params("keypoints").kpt_oks_sigmas)


def test_coco_names_and_edges_are_the_annotation_files(sample_dir: Path) -> None:
    file = sample_dir / "annotations" / "person_keypoints_val.json"
    (category,) = json.loads(file.read_text())["categories"]
    skeleton = get_skeleton("coco")
    assert list(skeleton.keypoint_names) == category["keypoints"]
    theirs = {frozenset((a - 1, b - 1)) for a, b in category["skeleton"]}
    assert {frozenset(edge) for edge in skeleton.edge_indices} == theirs
    assert len(skeleton.edges) == len(category["skeleton"])


def test_coco_flips_are_detectron2s() -> None:
    metadata = MetadataCatalog.get("keypoints_coco_2017_val")
    skeleton = get_skeleton("coco")
    assert skeleton.keypoint_names == tuple(metadata.keypoint_names)
    assert skeleton.keypoint_flip_map == tuple(metadata.keypoint_flip_map)


@pytest.mark.parametrize(("name", "count"), [("coco", 17), ("crowdpose", 14), ("mpii", 16)])
def test_flip_indices_exchange_sides(name: str, count: int) -> None:
    skeleton = get_skeleton(name)
    assert skeleton.num_keypoints == len(skeleton.sigmas) == count
    mirrored = [skeleton.keypoint_names[i] for i in skeleton.flip_indices]
    swap = {"left": "right", "right": "left"}
    for name_, other in zip(skeleton.keypoint_names, mirrored, strict=True):
        side, _, part = name_.partition("_")
        assert other == (f"{swap[side]}_{part}" if side in swap else name_)


@pytest.mark.parametrize("name", ["coco", "crowdpose", "mpii"])
def test_sides_share_sigmas_and_every_keypoint_is_drawn(name: str) -> None:
    skeleton = get_skeleton(name)
    sigmas = np.array(skeleton.sigmas)
    np.testing.assert_array_equal(sigmas, sigmas[list(skeleton.flip_indices)])
    rules = skeleton.keypoint_connection_rules
    assert {n for a, b, _ in rules for n in (a, b)} == set(skeleton.keypoint_names)
    colors = {(a, b): c for a, b, c in rules}
    assert len({colors[f"{s}_knee", f"{s}_ankle"] for s in ("left", "right")}) == 2


def test_crowdpose_order() -> None:
    names = get_skeleton("crowdpose").keypoint_names
    assert names[:4] == ("left_shoulder", "right_shoulder", "left_elbow", "right_elbow")
    assert names[-4:] == ("left_ankle", "right_ankle", "head", "neck")


def test_unknown_name_lists_known() -> None:
    with pytest.raises(ValueError, match=r"'cooc'.*'coco', 'crowdpose', 'mpii'"):
        get_skeleton("cooc")


@pytest.mark.parametrize(
    "wrong",
    [
        {"sigmas": (0.1,)},
        {"edges": (("a", "c"),)},
        {"flip_pairs": (("a", "b"), ("b", "a"))},
        {"keypoint_names": ("a", "a")},
    ],
)
def test_inconsistent_tables_are_refused(wrong: dict) -> None:
    right = {
        "name": "t",
        "keypoint_names": ("a", "b"),
        "flip_pairs": (),
        "edges": (),
        "sigmas": (0.1, 0.1),
    }
    Skeleton(**right)
    with pytest.raises(ValueError, match="skeleton 't'"):
        Skeleton(**{**right, **wrong})


def test_gt_candidates_are_the_labelled_joints() -> None:
    instances = Instances((10, 10))
    instances.gt_keypoints = Keypoints(
        torch.tensor([[[1.5, 2.5, 2], [0, 0, 0]], [[3.5, 4.5, 1], [5.5, 6.5, 2]]])
    )
    candidates = gt_candidates(instances, 2)
    assert candidates.points.tolist() == [[1.5, 2.5], [3.5, 4.5], [5.5, 6.5]]
    assert candidates.types.tolist() == [0, 0, 1]
    assert candidates.scores.tolist() == [1.0, 1.0, 1.0]
    empty = gt_candidates(instances[torch.zeros(2, dtype=torch.bool)], 2)
    assert len(empty) == 0 and empty.points.shape == (0, 2) and empty.types.dtype == torch.int64
    with pytest.raises(ValueError, match=r"MODEL\.SKELETON"):
        gt_candidates(instances, 3)
