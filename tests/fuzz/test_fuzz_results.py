"""Results files: `tools/evaluate.py`'s path from file to figures."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from mutations import COUNTS, FUZZ, JUNK, MUTATIONS, answer, mutated, summary

from mpn_d2.evaluation.results_file import load_results
from mpn_d2.structures.skeleton import get_skeleton

REPO = Path(__file__).resolve().parents[2]
ANNOTATIONS = REPO / "datasets" / "coco_sample" / "annotations" / "person_keypoints_train.json"
COCO = get_skeleton("coco")


def good() -> list[dict]:
    """The annotated people as if they had been found, and a box without a pose."""
    people = json.loads(ANNOTATIONS.read_text())["annotations"][:5]
    rows = [
        {
            **{"image_id": x["image_id"], "category_id": 1, "score": 0.9, "pose_score": 0.8},
            **{"bbox": x["bbox"], "keypoints": x["keypoints"]},
        }
        for x in people
    ]
    return [*rows, {**rows[0], "keypoints": [0.0] * 51}]


GOOD = good()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzzed results")


def use(file: Path) -> dict:
    evaluator, found = load_results(file, ANNOTATIONS, COCO)
    figures = evaluator.score_rows(found.rows)
    for metrics in figures.values():
        for name, value in metrics.items():
            assert value is None or (math.isfinite(value) and 0 <= value <= 100), name
    json.dumps(figures, allow_nan=False)
    return figures


def check(folder: Path, content: object) -> str:
    file = folder / "results.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    return answer("results", lambda: use(file), str(file))


def test_the_document_itself_is_good(folder):
    assert check(folder, GOOD) == "result"


@FUZZ
@given(mutations=MUTATIONS)
def test_results(folder, mutations):
    check(folder, mutated(GOOD, mutations))


NAMES = ["image_id", "category_id", "score", "pose_score", "bbox", "keypoints"]


@FUZZ
@given(key=st.sampled_from(NAMES), junk=JUNK, every=st.booleans())
@example(key="score", junk=True, every=True)
@example(key="pose_score", junk=True, every=True)
@example(key="score", junk="a" * 5000, every=False)
@example(key="bbox", junk=[10**300] * 4, every=True)
@example(key="keypoints", junk=[10**300] * 51, every=True)
@example(key="image_id", junk=math.nan, every=False)
def test_values_of_rows(folder, key, junk, every):
    """Of one row, and of all: pycocotools makes arrays of them."""
    check(folder, [{**r, key: junk} if every or not i else r for i, r in enumerate(GOOD)])


@FUZZ
@given(content=JUNK)
def test_something_else_than_results(folder, content):
    ended = check(folder, content)
    assert ended == "refused" or content == []


def test_other_ends_are_counted():
    """A traceback, and a message that names nothing."""

    def broken() -> None:
        raise KeyError("image_id")

    def unclear() -> None:
        raise ValueError("something")

    try:
        for work, error in ((broken, KeyError), (unclear, AssertionError)):
            with pytest.raises(error):
                answer("a test", work, "results.json")
        assert COUNTS["a test", "else"] == 2
        (line,) = (line for line in summary() if line.startswith("a test: 2 mutations"))
        assert line.endswith("2 in anything else")
    finally:
        del COUNTS["a test", "else"]
