"""Annotation files: loaded, mapped for training, and taken as truth of an evaluation."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import example, given
from mutations import FUZZ, JUNK, MUTATIONS, answer, mutated

from mpn_d2.config import load_config
from mpn_d2.data.dataset_mapper import PoseDatasetMapper
from mpn_d2.data.datasets import load_pose_dicts, register_people
from mpn_d2.evaluation.pose_evaluator import PoseEvaluator
from mpn_d2.structures.skeleton import get_skeleton

REPO = Path(__file__).resolve().parents[2]
IMAGES = REPO / "datasets" / "coco_sample" / "train"
COCO = get_skeleton("coco")


def good() -> dict:
    """Three bundled photographs with their people, and a crowd with an RLE mask."""
    file = IMAGES.parent / "annotations" / "person_keypoints_train.json"
    content = json.loads(file.read_text())
    images = content["images"][:3]
    kept = {x["id"] for x in images}
    people = [x for x in content["annotations"] if x["image_id"] in kept][:6]
    size = [images[0]["height"], images[0]["width"]]
    crowd = {
        **{"id": 999, "image_id": images[0]["id"], "category_id": 1, "iscrowd": 1},
        **{"bbox": [0, 0, 10, 10], "area": 100, "num_keypoints": 0, "keypoints": [0] * 51},
        "segmentation": {"size": size, "counts": [0, 10, size[0] * size[1] - 10]},
    }
    return {**content, "images": images, "annotations": [*people, crowd]}


GOOD = good()
MAPPER = PoseDatasetMapper(load_config(str(REPO / "configs/quick/demo.yaml")), is_train=True)


def use(file: Path) -> None:
    """All that reads annotations: loading, the mapper on every image, truth and a scored pose."""
    register_people("fuzzed", json_file=str(file), image_root=str(IMAGES), skeleton=COCO)
    for record in load_pose_dicts("fuzzed", is_train=True):
        MAPPER(record)
    evaluator = PoseEvaluator("fuzzed", tasks=("bbox", "keypoints"), sigmas=COCO.sigmas,
                              distributed=False)  # fmt: skip
    image = next(iter(evaluator.truth.imgs))
    row = {"image_id": image, "category_id": 1, "score": 0.5, "keypoints": [1.0] * 51}
    evaluator.score_rows({"keypoints": [row]})


def check(tmp_path: Path, content: object) -> str:
    file = tmp_path / "fuzzed.json"
    # As a program would write them that knows nothing of JSON's rules: NaN, lone surrogates.
    file.write_text(json.dumps(content), encoding="utf-8")
    return answer("annotations", lambda: use(file), str(file), "fuzzed", str(IMAGES))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzzed annotations")


def test_the_document_itself_is_good(folder):
    assert check(folder, GOOD) == "result"


@FUZZ
@given(mutations=MUTATIONS)
@example(mutations=[([1, 0, 2], "replace", [math.nan] * 4)])
def test_annotations(folder, mutations):
    check(folder, mutated(GOOD, mutations))


@FUZZ
@given(content=JUNK)
def test_something_else_than_annotations(folder, content):
    assert check(folder, content) == "refused"
