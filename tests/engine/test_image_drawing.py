"""Which files are drawn and what the pictures are called."""

from __future__ import annotations

import functools
import io
import os
from pathlib import Path

from PIL import Image
from square_people import NETWORK, SquareNetwork, scene
from tqdm import tqdm

from mpn_d2 import PosePredictor
from mpn_d2.engine import image_drawing
from mpn_d2.engine.image_drawing import (
    DrawingOptions,
    DrawingReport,
    draw_images,
    find_images,
    heatmap_file,
    name_ids,
    name_outputs,
)


def test_find_images(tmp_path: Path):
    for name in ("b.JPG", "a.png", ".hidden.png", "notes.txt", "x[1].png", "x1.png", "sub/c.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def found(*inputs: str) -> tuple[list[str], int]:
        files, missing = find_images([str(tmp_path / i) for i in inputs])
        return [os.path.relpath(f, tmp_path) for f in files], len(missing)

    assert found("") == (["a.png", "b.JPG", "x1.png", "x[1].png"], 0)
    assert found("b.JPG", "", "sub/../a.png")[0] == ["b.JPG", "a.png", "x1.png", "x[1].png"]
    assert found("x[1].png", "notes.txt") == (["x[1].png", "notes.txt"], 0)
    assert found("*.png", "s*") == (["a.png", "x1.png", "x[1].png", "sub/c.jpg"], 0)
    assert found("**/c.*", "*.gif") == (["sub/c.jpg"], 1)


def test_same_names_do_not_overwrite_one_another():
    files = ["a/1.jpg", "b/1.jpg", "c/1.PNG", "c/1_2.jpg", "d/x.jpg", "D/X.jpg"]
    targets = name_outputs(files, "out")
    assert [targets[f] for f in files] == [
        *("out/1.png", "out/1_2.png", "out/1_3.png", "out/1_2_2.png", "out/x.png", "out/X_2.png")
    ]
    ids = name_ids(["a/0012.jpg", "b/0012.jpg", "a/x.jpg", "b/x.jpg", "²3.jpg"])
    assert list(ids.values()) == [12, "b/0012.jpg", "x.jpg", "b/x.jpg", "²3.jpg"]
    ids = name_ids(["x/a.jpg", "a.jpg", "y/a.jpg"])
    assert list(ids.values()) == ["a.jpg", os.path.abspath("a.jpg"), "y/a.jpg"]


def test_heatmaps_overwrite_nothing():
    files = ["a.jpg", "a_heatmaps.jpg", "b/a.jpg"]
    targets = name_outputs(files, "out", heatmaps=True)
    written = [*targets.values(), *map(heatmap_file, targets.values())]
    assert len(set(written)) == 6
    assert targets["a.jpg"] == "out/a.png" and heatmap_file("out/a.png") == "out/a_heatmaps.png"
    assert list(name_outputs(files, "out").values()) == [
        *("out/a.png", "out/a_heatmaps.png", "out/a_2.png")
    ]


def test_progress_counts_drawn_and_unreadable_images(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(NETWORK, SquareNetwork)
    shown = io.StringIO()
    bar = functools.partial(tqdm, file=shown, mininterval=0)
    # As on a terminal.
    monkeypatch.setattr(image_drawing, "tqdm", lambda **given: bar(**{**given, "disable": False}))
    monkeypatch.setattr(DrawingReport, "fail", lambda self, line: self.failures.append(line))
    files = [str(tmp_path / name) for name in ("a.png", "b.png", "c.png")]
    for file in files[::2]:
        Image.fromarray(scene({"red": (5, 5, 30, 60)}, (64, 64))).save(file)
    Path(files[1]).touch()
    report = DrawingReport()
    targets = name_outputs(files, str(tmp_path / "out"))
    (tmp_path / "out").mkdir()
    predictor = PosePredictor("quick/demo.yaml", "some.pth")
    draw_images(files, targets, predictor, DrawingOptions(), report, None, 1)
    assert (report.pictures, len(report.failures)) == (2, 1)
    assert "0/3" in shown.getvalue() and "3/3" in shown.getvalue()
    assert "image/s" in shown.getvalue() or "s/image" in shown.getvalue()
