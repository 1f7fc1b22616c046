"""tools/visualize_results.py: pictures by rank, the page, and every kind of bad input."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from repo_tools import load_tool
from results_cases import ANNOTATIONS, SAMPLE, noisy_rows

from mpn_d2.engine.cli import run_command

tool = load_tool("visualize_results")


def run(
    folder: Path, rows: object, *arguments: str, images: object = None, annotations: object = None
) -> str:
    """The page of a call, which writes to folder/seen."""
    folder.mkdir(exist_ok=True)
    results = folder / "results.json"
    results.write_text(json.dumps(rows))
    given = ["--results", str(results), "--annotations", str(annotations or ANNOTATIONS)]
    given += ["--images", str(images or SAMPLE / "val"), "--output", str(folder / "seen")]
    tool.main(tool.parse_args([*given, *arguments]))
    return (folder / "seen" / "index.html").read_text()


def sections(page: str) -> list[str]:
    return re.findall("<section>.*?</section>", page)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("whole")
    return run(folder, noisy_rows(), "--most", "4", "--score-threshold", "0"), folder / "seen"


def test_worst_first_and_linked(page: tuple[str, Path]) -> None:
    text, folder = page
    parts = sections(text)
    assert len(parts) == 4
    quality = [float(re.search(r"quality ([\d.]+)", part)[1]) for part in parts]
    assert quality == sorted(quality) and quality[0] < 0.5
    linked = [re.search('src="([^"]+)"', part)[1] for part in parts]
    assert linked == sorted(linked)
    assert sorted(os.listdir(folder)) == [*linked, "index.html"]
    for rank, (name, part) in enumerate(zip(linked, parts, strict=True), start=1):
        assert re.fullmatch(rf"{rank:04d}_\d{{12}}\.png", name)
        assert name[5:-4] + ".jpg" in part
        width, height = Image.open(folder / name).size
        photo = Image.open(SAMPLE / "val" / f"{name[5:-4]}.jpg")
        assert (width - 4) / 2 / (height - 20) == pytest.approx(
            photo.width / photo.height, rel=0.01
        )


def test_figures_of_people_and_of_coco(page: tuple[str, Path]) -> None:
    text, _ = page
    content = json.loads(ANNOTATIONS.read_text())
    for part in sections(text):
        image_id = int(re.search(r"\(id (\d+)\)", part)[1])
        people = sum(
            a["image_id"] == image_id and a["num_keypoints"] > 0 for a in content["annotations"]
        )
        assert f"{people} people" in part
        rows = re.findall(r"<tr><td>(\d+)</td><td>([\d.]+|missed)</td>", part)
        assert [int(number) for number, _ in rows] == list(range(1, people + 1))
        missed = int(re.search(r"(\d+) missed", part)[1])
        assert sum(oks == "missed" for _, oks in rows) == missed
        false = int(re.search(r"(\d+) false", part)[1])
        total = sum(float(oks) for _, oks in rows if oks != "missed")
        quality = float(re.search(r"quality ([\d.]+)", part)[1])
        assert quality == pytest.approx(total / (people + false), abs=2e-3)
    assert re.search(r"<th>AP</th>.*<td>keypoints</td><td>\d", text, re.DOTALL)


def test_threshold_leaves_poses_out_of_images_only(tmp_path: Path) -> None:
    page = run(tmp_path, noisy_rows(), "--most", "1", "--score-threshold", "2")
    (part,) = sections(page)
    assert "0 poses, 0 false" in part
    assert " missed, 0 paired with a pose (mean OKS -); 0 poses are false" in page
    assert not re.search(r"<td>keypoints</td><td>0\.0</td>", page)


def test_poses_without_boxes_and_flags(tmp_path: Path) -> None:
    """Joints are drawn whatever the flag, and boxes do not reach to unfound joints at 0, 0."""
    rows = noisy_rows()[:1]
    del rows[0]["bbox"]
    rows[0]["keypoints"] = [0.0] * 51
    rows[0]["keypoints"][15:21] = [300.0, 200.0, 0.0, 340.0, 260.0, 0.0]
    rows[0]["score"] = 0.9
    assert tool.box_of_joints(rows[0]["keypoints"]) == [300, 200, 40, 60]
    assert tool.box_of_joints([0.0] * 51) == [0, 0, 0, 0]
    content = json.loads(ANNOTATIONS.read_text())
    content["annotations"] = []
    image = next(i for i in content["images"] if i["id"] == rows[0]["image_id"])
    content["images"] = [image]
    (tmp_path / "a.json").write_text(json.dumps(content))
    run(tmp_path, rows, annotations=tmp_path / "a.json")
    (name,) = [n for n in os.listdir(tmp_path / "seen") if n.endswith(".png")]
    drawn = np.array(Image.open(tmp_path / "seen" / name)).astype(int)
    scale = (drawn.shape[1] - 4) / 2 / image["width"]
    shown = drawn.shape[1] // 2 + 2
    right, left = drawn[20:, shown:], drawn[20 : drawn.shape[0], : shown - 4]
    changed = np.argwhere(np.abs(right - left).sum(axis=2) > 0)
    for x, y in ((300.5, 200.5), (340.5, 260.5)):
        assert right[int(y * scale), int(x * scale)].tolist() == [255, 255, 255]
    # All of it lies about the two joints.
    assert changed.min(axis=0).tolist() > [180 * scale, 280 * scale]


def test_missing_and_empty_images_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    shutil.copytree(SAMPLE / "val", images)
    names = sorted(os.listdir(images))
    (images / names[0]).unlink()
    (images / names[1]).write_bytes(b"")
    with pytest.raises(SystemExit) as stopped:
        run_command(lambda: run(tmp_path, noisy_rows(), images=images))
    assert stopped.value.code == 1
    error = capsys.readouterr().err
    assert re.search(rf"{names[0]} .*not found", error)
    assert re.search(rf"{names[1]} .*cannot be read", error)
    assert "2 images failed (named above)" in error
    page = (tmp_path / "seen" / "index.html").read_text()
    parts = sections(page)
    assert len(parts) == len(names)
    for name in names[:2]:
        (part,) = [p for p in parts if name in p]
        assert "<img" not in part and 'class="bad"' in part and "<td>1</td>" in part
    assert page.count("<img") == len(names) - 2


def test_nothing_found_and_nobody_annotated(tmp_path: Path) -> None:
    page = run(tmp_path / "a", [], "--most", "2")
    assert "0 poses are false" in page and len(sections(page)) == 2
    content = json.loads(ANNOTATIONS.read_text())
    content["annotations"] = []
    (tmp_path / "nobody.json").write_text(json.dumps(content))
    options = {"annotations": tmp_path / "nobody.json"}
    page = run(tmp_path / "b", noisy_rows(), "--most", "1", "--score-threshold", "0", **options)
    assert re.search(r"<td>keypoints</td><td>-</td>", page)
    (part,) = sections(page)
    assert "quality 0.000; 0 people, 0 missed" in part


def test_mistakes_end_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = noisy_rows()
    boxes = [{k: v for k, v in row.items() if k != "keypoints"} for row in rows]
    cases = [
        ({"a": 1}, (), {}, "a list of results is needed"),
        ([{**rows[0], "keypoints": [1, 2]}], (), {}, "row 0 has 0.666667 keypoints, expected 17"),
        ([{**rows[0], "score": float("nan")}], (), {}, "row 0 has score nan"),
        (boxes, (), {}, "no row has 'keypoints': poses are needed"),
        (rows, ("--most", "0"), {}, "--most is 0: at least 1"),
        (rows, ("--score-threshold", "nan"), {}, "--score-threshold is nan"),
        (rows, (), {"images": "nowhere"}, "--images nowhere: no such folder"),
        (rows, (), {"annotations": "none.json"}, "annotation file none.json not found"),
        (rows, ("--output", str(ANNOTATIONS)), {}, "is a file: name a folder"),
        (rows, ("--output", f"{ANNOTATIONS}/seen"), {}, f"cannot be made: {ANNOTATIONS} is a"),
    ]
    for given, arguments, options, message in cases:
        with pytest.raises(SystemExit) as stopped:
            run_command(lambda g=given, a=arguments, o=options: run(tmp_path, g, *a, **o))
        assert stopped.value.code == 2
        error = capsys.readouterr().err
        assert message in error and len(error.splitlines()) == 1
    assert not (tmp_path / "seen").exists()
