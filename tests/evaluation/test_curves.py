"""Recall-precision curves against precisions counted by hand; pictures and numbers."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mpn_d2.evaluation.curves import curves_of, write_curves

# Sides of people: one small, one medium, two large for COCO.
SIDES = (20, 50, 120, 150)


def scorer(sides: tuple[int, ...], found: list[tuple[int | None, float, float]]) -> COCOeval:
    """Boxes in a row, one an image; `found`: (place in sides or None, IoU, score)."""
    images = [{"id": i, "width": 400, "height": 400} for i in range(1, len(sides) + 1)]
    boxes = [[100.0, 100.0, side, side] for side in sides]
    truth = COCO()
    truth.dataset = {
        "images": images,
        "categories": [{"id": 1, "name": "person"}],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "bbox": b, "area": b[2] ** 2, "iscrowd": 0}
            for i, b in enumerate(boxes, start=1)
        ],
    }
    rows = []
    for place, iou, score in found:
        x, y, width, height = boxes[place or 0]
        box = [x, y, width * iou, height] if place is not None else [300, 300, width, height]
        rows.append({"image_id": (place or 0) + 1, "category_id": 1, "bbox": box, "score": score})
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        done = COCOeval(truth, truth.loadRes(rows), "bbox")
        done.evaluate()
        done.accumulate()
        done.summarize()
    return done


def by_hand(hits: list[bool], people: int) -> np.ndarray:
    """COCO's precision at 101 recalls, of results in order of score."""
    curve = np.zeros(101)
    for i in range(101):
        reached = [
            sum(hits[: n + 1]) / (n + 1)
            for n in range(len(hits))
            if sum(hits[: n + 1]) / people >= np.linspace(0, 1, 101)[i] - 1e-12
        ]
        curve[i] = max(reached, default=0.0)
    return curve


FOUND = [(3, 0.97, 0.9), (None, 1, 0.8), (2, 0.62, 0.7), (0, 0.81, 0.6), (None, 1, 0.5)]


def test_curves_are_precisions_counted_by_hand() -> None:
    done = scorer(SIDES, FOUND)
    curves = curves_of(done)
    assert list(curves.precision) == ["all", "small", "medium", "large"]
    assert curves.task == "bbox" and curves.thresholds[[0, -1]] == pytest.approx([0.5, 0.95])
    for i, threshold in enumerate(curves.thresholds):
        # 0.62, 0.81 and 0.97 are the IoU of the three who are found.
        hits = [place is not None and iou >= threshold for place, iou, _ in FOUND]
        expected = by_hand(hits, people=4)
        np.testing.assert_allclose(curves.precision["all"][i], expected, atol=1e-9)
        assert curves.average_precision("all")[i] == pytest.approx(100 * expected.mean())
    assert curves.average_precision("all").mean() == pytest.approx(100 * done.stats[0])
    assert curves.average_precision("large").mean() == pytest.approx(100 * done.stats[5])
    assert curves.average_precision("all")[0] > curves.average_precision("all")[-1] > 0


def test_sizes_without_people_have_no_curve() -> None:
    assert list(curves_of(scorer((120, 150), [(1, 0.97, 0.9)])).precision) == ["all", "large"]
    nobody = scorer((120,), [(None, 1, 0.5)])
    assert curves_of(nobody).average_precision("all") == pytest.approx(0)
    empty = scorer((120,), [(0, 1, 0.5)])
    empty.params.imgIds = []
    empty.eval["precision"][:] = -1
    assert curves_of(empty) is None


def test_picture_and_numbers(tmp_path: Path) -> None:
    curves = curves_of(scorer(SIDES, FOUND))
    path = tmp_path / "new" / "both.png"
    write_curves(path, {"bbox": curves, "keypoints": curves})
    assert sorted(f.name for f in path.parent.iterdir()) == ["both.json", "both.png"]
    one, two = tmp_path / "one.png", Image.open(path)
    write_curves(one, {"bbox": curves})
    assert two.height == 2 * Image.open(one).height and two.width == Image.open(one).width
    numbers = json.loads((path.parent / "both.json").read_text())
    assert list(numbers) == ["bbox", "keypoints"]
    read = numbers["bbox"]
    assert read["similarity"] == "IoU" and len(read["recall"]) == 101
    np.testing.assert_allclose(
        read["areas"]["medium"]["precision"], curves.precision["medium"], atol=1e-5
    )
    np.testing.assert_allclose(
        read["areas"]["all"]["AP"], curves.average_precision("all"), atol=1e-5
    )
    write_curves(tmp_path / "none.png", {})
    assert not (tmp_path / "none.png").exists()
