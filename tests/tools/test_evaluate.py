"""tools/evaluate.py: the figures of pycocotools on the same file, options, and bad input."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from repo_tools import load_tool
from results_cases import ANNOTATIONS, noisy_rows

from mpn_d2.engine.cli import run_command

REPO = Path(__file__).resolve().parents[2]
tool = load_tool("evaluate")


def write(path: Path, content: object) -> str:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def run(tmp_path: Path, rows: object, *arguments: str, annotations: object = ANNOTATIONS) -> dict:
    """The metrics of a call, by flat name."""
    results = write(tmp_path / "results.json", rows)
    given = ["--results", results, "--annotations", str(annotations), *arguments]
    tool.main(tool.parse_args([*given, "--output", str(tmp_path / "metrics.json")]))
    return json.loads((tmp_path / "metrics.json").read_text())["metrics"]


def official(annotations: Path, results: Path, task: str, images: list | None = None) -> list:
    """pycocotools alone, 0 to 100."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        scorer = COCOeval(truth, truth.loadRes(str(results)), task)
        if images is not None:
            scorer.params.imgIds = images
        scorer.evaluate(), scorer.accumulate(), scorer.summarize()
    return [100 * value if value >= 0 else None for value in scorer.stats]


def of_task(metrics: dict, task: str) -> list:
    return [value for name, value in metrics.items() if name.startswith(f"{task}/")]


@pytest.mark.parametrize("boxes", [True, False])
def test_figures_are_those_of_pycocotools(tmp_path: Path, boxes: bool) -> None:
    rows = noisy_rows()
    if not boxes:
        for row in rows:
            del row["bbox"]
    metrics = run(tmp_path, rows)
    tasks = ["bbox", "keypoints"] if boxes else ["keypoints"]
    assert {name.split("/")[0] for name in metrics} == set(tasks)
    for task in tasks:
        stats = official(ANNOTATIONS, tmp_path / "results.json", task)
        assert of_task(metrics, task) == pytest.approx(stats)
        assert 5 < metrics[f"{task}/AP"] < 90


def test_scores_of_boxes_and_poses_apart(tmp_path: Path) -> None:
    """Rows of tools/demo.py: as two files with one score each."""
    rng = np.random.default_rng(0)
    rows = [{**row, "pose_score": float(rng.random()), "file_name": "x"} for row in noisy_rows()]
    metrics = run(tmp_path, rows)
    write(tmp_path / "boxes.json", [{**row, "keypoints": None} for row in rows])
    write(tmp_path / "poses.json", [{**row, "score": row["pose_score"]} for row in rows])
    for task, name in (("bbox", "boxes.json"), ("keypoints", "poses.json")):
        assert of_task(metrics, task) == pytest.approx(official(ANNOTATIONS, tmp_path / name, task))


def test_images_without_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads(ANNOTATIONS.read_text())
    images = [image["id"] for image in content["images"]]
    content["images"].append({**content["images"][0], "id": 99})
    rows = noisy_rows()
    rows.append({**rows[0], "image_id": 99, "score": 1.0})
    annotations = tmp_path / "annotations.json"
    write(annotations, content)
    results = tmp_path / "results.json"
    everywhere = run(tmp_path, rows, annotations=annotations)
    assert of_task(everywhere, "keypoints") == pytest.approx(
        official(annotations, results, "keypoints")
    )
    with_people = run(tmp_path, rows, "--gt-boxes-only", annotations=annotations)
    assert of_task(with_people, "bbox") == pytest.approx(
        official(annotations, results, "bbox", images)
    )
    assert with_people["keypoints/AP"] > everywhere["keypoints/AP"] + 1
    assert "9 of 10 images have annotated people and count" in capsys.readouterr().out


def test_rows_of_other_images_and_packed_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = noisy_rows()
    expected = run(tmp_path, rows)
    packed = tmp_path / "annotations.json.gz"
    packed.write_bytes(gzip.compress(ANNOTATIONS.read_bytes()))
    other = [{**rows[0], "image_id": 123}] * 3 + [{**rows[0], "category_id": 2}]
    assert run(tmp_path, rows + other, annotations=packed) == pytest.approx(expected)
    printed = capsys.readouterr().out
    assert "3 rows are of images that the annotations do not list" in printed
    assert "1 rows are of other categories than people" in printed


def test_curves_and_tasks(tmp_path: Path) -> None:
    rows = noisy_rows()
    metrics = run(tmp_path, rows, "--tasks", "keypoints", "--curves", str(tmp_path / "folder"))
    assert {name.split("/")[0] for name in metrics} == {"keypoints"}
    names = ["keypoints_curves.json", "keypoints_curves.png"]
    assert sorted(os.listdir(tmp_path / "folder")) == names
    run(tmp_path, rows, "--curves", str(tmp_path / "new" / "both.png"))
    numbers = json.loads((tmp_path / "new" / "both.json").read_text())
    assert set(numbers) == {"bbox", "keypoints"}
    found = numbers["keypoints"]["areas"]["all"]["AP"]
    assert sum(found) / len(found) == pytest.approx(metrics["keypoints/AP"], abs=1e-3)


def test_no_results_score_zero(tmp_path: Path) -> None:
    metrics = run(tmp_path, [])
    assert metrics["keypoints/AP"] == metrics["bbox/AP"] == 0


def test_mistakes_end_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = noisy_rows()
    content = json.loads(ANNOTATIONS.read_text())
    empty = write(tmp_path / "empty.json", {**content, "annotations": []})
    without = write(tmp_path / "info.json", {k: content[k] for k in ("images", "categories")})
    (tmp_path / "a.png").mkdir()
    nan = [{**rows[0], "score": float("nan")}]
    poses = [{k: v for k, v in row.items() if k != "bbox"} for row in rows]
    cases = [
        (nan, (), {}, "row 0 has score nan"),
        ({}, (), {}, "a list of results is needed"),
        (rows, (), {"annotations": empty}, "nobody is annotated, nothing to compare with"),
        (rows, (), {"annotations": without}, "nobody is annotated, nothing to compare with"),
        (rows, (), {"annotations": "none.json"}, "annotation file none.json not found"),
        (rows, ("--skeleton", "crowdpose"), {}, "people have 17 keypoints, skeleton 'crowdpose'"),
        (rows, ("--skeleton", "dog"), {}, "unknown skeleton 'dog'"),
        (poses, ("--tasks", "bbox"), {}, "no row has 'bbox', so it cannot be scored"),
        (rows, ("--curves", str(tmp_path / "results.json")), {}, "is a file: name a folder, or a"),
        (rows, ("--curves", str(tmp_path / "a.png")), {}, "a.png is a folder: name a file"),
        (rows, ("--curves", f"{ANNOTATIONS}/c"), {}, f"cannot be made: {ANNOTATIONS} is a file"),
    ]
    for given, arguments, options, message in cases:
        with pytest.raises(SystemExit) as stopped:
            run_command(lambda g=given, a=arguments, o=options: run(tmp_path, g, *a, **o))
        assert stopped.value.code == 2
        error = capsys.readouterr().err
        assert message in error and len(error.splitlines()) == 1
    assert not (tmp_path / "metrics.json").exists()
    for name in ("results.json", ".", "empty.json/m.json"):
        results = write(tmp_path / "results.json", rows)
        output = str(tmp_path / name)
        arguments = ["--results", results, "--annotations", str(ANNOTATIONS), "--output", output]
        with pytest.raises((ValueError, OSError), match="would overwrite|is a folder|is a file"):
            tool.main(tool.parse_args(arguments))
    assert json.loads((tmp_path / "results.json").read_text()) == rows


@pytest.mark.parametrize(
    ("curves", "output", "words"),
    [
        ("results.png", None, "--curves results.png would overwrite results.json"),
        ("truth.PNG", None, "--curves truth.PNG would overwrite truth.json"),
        ("sub/../results.png", None, "would overwrite"),
        ("m.png", "m.json", "--curves m.png writes m.json, too"),
        ("m.png", "m.png", "--curves m.png writes m.png, too"),
        ("c", "c/keypoints_curves.json", "--curves c writes c/keypoints_curves.json, too"),
    ],
)
def test_curves_overwrite_nothing(
    tmp_path: Path, monkeypatch, curves: str, output: str | None, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    write(tmp_path / "results.json", noisy_rows())
    (tmp_path / "truth.json").write_bytes(ANNOTATIONS.read_bytes())
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.json")}
    line = ["--results", "results.json", "--annotations", "truth.json", "--curves", curves]
    with pytest.raises(ValueError, match=words):
        tool.main(tool.parse_args([*line, *(["--output", output] if output else [])]))
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.*")} == before


def test_as_a_command(tmp_path: Path) -> None:
    results = write(tmp_path / "results.json", noisy_rows())
    arguments = ["--results", results, "--annotations", str(ANNOTATIONS)]
    done = subprocess.run(
        [sys.executable, str(REPO / "tools" / "evaluate.py"), *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-1000:]
    assert done.stdout.count("Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all") == 2
