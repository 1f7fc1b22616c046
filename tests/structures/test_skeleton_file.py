"""Skeletons in YAML: round trips, every fault named with file and key."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml
from detectron2.data import MetadataCatalog
from detectron2.data.catalog import Metadata

from mpn_d2.structures.skeleton import Skeleton, get_skeleton

RIGHT = {
    "keypoint_names": ["head", "left_hand", "right_hand"],
    "flip_pairs": [["left_hand", "right_hand"]],
    "edges": [["head", "left_hand"], ["head", "right_hand"]],
    "sigmas": [0.08, 0.06, 0.06],
}


def _write(folder: Path, content: object) -> str:
    file = folder / "hands.yaml"
    file.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return str(file)


def test_file_is_found_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _write(tmp_path, RIGHT)
    skeleton = get_skeleton(path)
    assert skeleton == Skeleton(
        name="hands",
        keypoint_names=("head", "left_hand", "right_hand"),
        flip_pairs=(("left_hand", "right_hand"),),
        edges=(("head", "left_hand"), ("head", "right_hand")),
        sigmas=(0.08, 0.06, 0.06),
    )
    assert skeleton.flip_indices == (0, 2, 1)
    monkeypatch.chdir(tmp_path)
    assert get_skeleton("hands.yaml") is get_skeleton(path)
    status = os.stat(path)
    _write(tmp_path, {**RIGHT, "name": "two"})
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))
    assert get_skeleton("hands.yaml").name == "two"


def test_one_sigma_for_all_and_no_edges(tmp_path: Path) -> None:
    content = {"keypoint_names": ["a", "b"], "flip_pairs": [], "sigma": 0.07}
    skeleton = get_skeleton(_write(tmp_path, content))
    assert (skeleton.sigmas, skeleton.edges, skeleton.flip_pairs) == ((0.07, 0.07), (), ())


@pytest.mark.parametrize("name", ["coco", "crowdpose", "mpii"])
def test_to_yaml_and_back(name: str, tmp_path: Path) -> None:
    skeleton = get_skeleton(name)
    assert Skeleton.from_yaml(_write(tmp_path, skeleton.to_yaml())) == skeleton


def test_to_metadata_and_back() -> None:
    skeleton = get_skeleton("crowdpose")
    metadata = Metadata().set(**skeleton.to_metadata())
    assert Skeleton.from_metadata(metadata, "crowdpose") == skeleton
    # Detectron2's own hold no sigmas: those of the skeleton with the same names.
    coco = Skeleton.from_metadata(MetadataCatalog.get("keypoints_coco_2017_val"), "coco")
    known = get_skeleton("coco")
    assert (coco.keypoint_names, coco.flip_pairs) == (known.keypoint_names, known.flip_pairs)
    assert coco.sigmas == known.sigmas
    assert Skeleton.from_metadata(Metadata()) is None
    with pytest.raises(ValueError, match="'mine' has no keypoint_sigmas"):
        Skeleton.from_metadata({"keypoint_names": ["a", "b"]}, "mine")


def _without(key: str) -> dict:
    return {k: v for k, v in RIGHT.items() if k != key}


FAULTS = {
    "no YAML": ("keypoint_names: [", r"is not YAML"),
    "a list": ("- head", r"KEY: VALUE lines are needed"),
    "empty": ("", r"KEY: VALUE lines are needed"),
    "unknown key": ({**RIGHT, "edge": []}, r"no key 'edge' in a skeleton; did you mean edges\?"),
    "key twice": (
        f"{yaml.safe_dump(RIGHT)}sigma: 0.1\nsigma: 0.1\n",
        r"sigma is there twice, in lines \d+ and \d+: keep one",
    ),
    "key twice in braces": ('{"edges": [], edges: []}', r"edges is there twice, in lines 1 and 1"),
    "no names": (_without("keypoint_names"), r"keypoint_names is missing"),
    "no pairs": (_without("flip_pairs"), r"flip_pairs is missing"),
    "no sigmas": (_without("sigmas"), r"give either sigmas .* or sigma"),
    "both sigmas": ({**RIGHT, "sigma": 0.1}, r"give either sigmas .* or sigma"),
    "names no list": ({**RIGHT, "keypoint_names": "head"}, r"keypoint_names is 'head': a list"),
    "boolean name": (
        {**RIGHT, "keypoint_names": ["head", True, "x"]},
        r"keypoint_names\[1\] is True, no text: put the name in quotes",
    ),
    "name twice": (
        {**RIGHT, "keypoint_names": ["head", "head", "left_hand"]},
        r"keypoint_names has 'head' twice",
    ),
    "unknown joint in an edge": (
        {**RIGHT, "edges": [["head", "tail"]]},
        r"edges has an unknown keypoint 'tail'",
    ),
    "edge of three": ({**RIGHT, "edges": [["head"] * 3]}, r"edges\[0\] is .*a pair"),
    "edge to itself": ({**RIGHT, "edges": [["head", "head"]]}, r"edges has .*not two different"),
    "edges no list": ({**RIGHT, "edges": None}, r"edges is None: a list of pairs"),
    "unknown joint in a pair": (
        {**RIGHT, "flip_pairs": [["left_hand", "right_hand"], ["head", "tail"]]},
        r"flip_pairs has an unknown keypoint 'tail'",
    ),
    "in two pairs": (
        {**RIGHT, "flip_pairs": [["left_hand", "right_hand"], ["left_hand", "head"]]},
        r"'left_hand' is in two flip_pairs",
    ),
    "forgotten pair": ({**RIGHT, "flip_pairs": []}, r"'left_hand' and 'right_hand' are no pair"),
    "wrong pair": (
        {**RIGHT, "flip_pairs": [["left_hand", "head"]]},
        r"'left_hand' and 'right_hand' are no pair in flip_pairs",
    ),
    "too few sigmas": ({**RIGHT, "sigmas": [0.1, 0.1]}, r"2 sigmas for 3 keypoint_names"),
    "sigma no number": ({**RIGHT, "sigmas": [0.1, "wide", 0.1]}, r"sigmas\[1\] is 'wide', no num"),
    "sigmas no list": ({**RIGHT, "sigmas": 0.1}, r"sigmas is 0.1: a list of 3 numbers"),
    "negative sigma": ({**RIGHT, "sigmas": [0.1, -0.1, 0.1]}, r"-0.1 for 'left_hand', not above"),
    "zero sigma": ({**_without("sigmas"), "sigma": 0}, r"sigmas has 0.0 for 'head'"),
    "infinite sigma": ({**RIGHT, "sigmas": [0.1, 0.1, float("inf")]}, r"inf for 'right_hand'"),
    "text for the sigma": ({**_without("sigmas"), "sigma": "wide"}, r"sigma is 'wide', no number"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_name_file_and_key_in_one_line(tmp_path: Path, fault: str) -> None:
    content, message = FAULTS[fault]
    path = _write(tmp_path, content)
    with pytest.raises(ValueError, match=message) as info:
        get_skeleton(path)
    assert path in str(info.value) and "\n" not in str(info.value)


def test_missing_file_and_unknown_name() -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml not found"):
        get_skeleton("nowhere.yaml")
    with pytest.raises(ValueError, match=r"'hands'.*'mpii'\], or the path of a \.yaml file"):
        get_skeleton("hands")
