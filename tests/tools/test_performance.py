"""tools/performance.py: what it runs, what it writes, and that the page has room for all of it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from speed_figures import FIGURES

from mpn_d2.data.datasets import load_pose_dicts
from mpn_d2.utils.doc_tables import fill_tables
from mpn_d2.utils.performance_page import speed_tables
from tools import benchmark, performance

REPO = Path(__file__).resolve().parents[2]


def test_speed_runs_the_benchmark_of_every_config(tmp_path, monkeypatch, capsys):
    ran = []

    def run(command: list[str], cwd: Path) -> SimpleNamespace:
        args = benchmark.parse_args(command[2:])
        ran.append(args)
        output, plot = Path(args.output), Path(args.plot)
        name = Path(args.config_file).stem
        metrics = {key.replace("/net/", f"/{name}/"): v for key, v in FIGURES.items()}
        for file, text in ((output, json.dumps({"metrics": metrics})), (plot, "")):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(performance.subprocess, "run", run)
    arguments = ["--runs", "unused", "--only", "speed", "--output", str(tmp_path), "--rounds", "3"]
    performance.main(performance.parse_args(arguments))
    assert [Path(args.config_file).stem for args in ran] == ["R_50_shared", "R_50", "Lite_R_18"]
    for args in ran:
        assert (REPO / args.config_file).is_file() and args.part == "pipeline"
        assert (args.against, args.size, args.rounds) == ("keypoint_rcnn", 480, 3)
        assert {0, 1, 5, 20, 50, 100} == set(args.persons)
    names = {p.name for p in (tmp_path / "results").iterdir()}
    assert names == {"performance.json", "performance_R_50.json", "performance_Lite_R_18.json"}
    found = performance.tables(tmp_path)
    for config in performance.SPEED:
        assert f"images/performance_{config}.png" in found[f"plot_{config}"]
        assert f"people_{config}" in found and f"bound_{config}" in found
    assert "R_50_shared, fp32: time at 20 people" in found["targets"]
    assert "people_Lite_R_18" in capsys.readouterr().out


def test_systems_and_heads_are_measured_and_shown(tmp_path, monkeypatch):
    ran = {}

    def run(command: list[str], cwd: Path) -> SimpleNamespace:
        args = benchmark.parse_args(command[2:])
        ran[args.part] = args
        values = {
            "systems": {"seconds/keypoint_rcnn/1": 0.5, "seconds/A.b/1": 0.25, "ratio/A.b/1": 0.5},
            "heads": {"seconds/none/20": 2.0, "seconds/both/20": 2.5, "ratio/both/20": 1.25},
        }[args.part]
        metrics = {f"{args.part}/{name}": value for name, value in values.items()}
        Path(args.output).parent.mkdir(parents=True, exist_ok=True)
        Path(args.output).write_text(json.dumps({"metrics": metrics}))
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(performance.subprocess, "run", run)
    arguments = ["--runs", "r", "--only", "systems", "--output", str(tmp_path), "--rounds", "3"]
    performance.main(performance.parse_args(arguments))
    assert (ran["systems"].rounds, ran["heads"].repeats) == (3, 3)
    for file in (ran["systems"].config_file, *ran["systems"].beside, ran["heads"].config_file):
        assert (REPO / file).is_file()
    found = performance.tables(tmp_path)
    assert found["systems"].splitlines()[2:] == [
        "| keypoint_rcnn | 500.0 | - |",
        "| A.b | 250.0 | 50.0 |",
    ]
    assert found["heads"].splitlines()[2:] == ["| none | 2000.0 | - |", "| both | 2500.0 | 125.0 |"]


def test_a_benchmark_that_fails_ends_it(tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess([], 2)
    monkeypatch.setattr(performance.subprocess, "run", lambda *a, **named: failed)
    args = ["--runs", "unused", "--only", "speed", "--output", str(tmp_path), "--configs", "R_50"]
    with pytest.raises(ValueError, match="benchmark of R_50 failed"):
        performance.main(performance.parse_args(args))
    with pytest.raises(ValueError, match="--rounds must be at least 1"):
        performance.main(performance.parse_args([*args, "--rounds", "0"]))


def test_folders_that_cannot_be_made_end_it_before_it_begins(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for name in ("measure_speed", "measure_accuracy"):
        monkeypatch.setattr(performance, name, None)
    for runs, output in (("runs", "file"), ("file", "docs")):
        args = ["--runs", str(tmp_path / runs), "--output", str(tmp_path / output)]
        with pytest.raises(OSError, match="cannot be made: .*/file is a file"):
            performance.main(performance.parse_args(args))


def test_accuracy_of_both_networks_in_every_mode(tmp_path, monkeypatch):
    trained, evaluated = [], []
    monkeypatch.setattr(performance, "prepare_data", lambda name, runs, count: None)
    monkeypatch.setattr(
        performance, "train_missing", lambda config, folder, options: trained.append(config)
    )

    def evaluate(cfg, *, weights: str) -> dict:
        evaluated.append((Path(weights).parent.name, cfg.SPEED.MODE, cfg.MODEL.POSE_FPN.SHARED))
        assert len(load_pose_dicts(cfg.DATASETS.TEST, is_train=False)) == 3
        return {cfg.DATASETS.TEST[0]: {"keypoints": {"AP": 50.0 + len(evaluated)}}}

    monkeypatch.setattr(performance, "evaluate", evaluate)
    lacks = {"half": "no bfloat16"}
    monkeypatch.setattr(performance, "unavailable", lambda mode, *rest: lacks.get(mode, ""))
    arguments = ["--runs", str(tmp_path), "--only", "accuracy", "--output", str(tmp_path / "o")]
    arguments += ["--modes", "plain", "fp32", "half", "--test-images", "3"]
    performance.main(performance.parse_args(arguments))
    assert trained == ["drawn_v1.yaml", "lite_drawn.yaml"]
    assert evaluated == [
        ("drawn-v1", "plain", False),
        ("drawn-v1", "fp32", False),
        ("lite-drawn-v1", "plain", True),
        ("lite-drawn-v1", "fp32", True),
    ]
    table = performance.tables(tmp_path / "o")["accuracy"]
    assert "| drawn-v1, fp32 | 52.0 | - | - | 1.0 |" in table


def test_the_page_has_a_place_for_every_table(tmp_path):
    page = tmp_path / "page.md"
    page.write_text((REPO / "docs" / "performance.md").read_text())
    for config in performance.SPEED:
        metrics = {key.replace("/net/", f"/{config}/"): v for key, v in FIGURES.items()}
        found = speed_tables(config, metrics)
        assert len(found) == 7
        fill_tables(page, {**found, f"plot_{config}": "![]()"})
    fill_tables(page, {"accuracy": "| |", "targets": "| |"})


def test_the_light_network_of_the_drawings_is_that_of_the_family(paper_config):
    from detectron2.modeling import build_model

    family, drawn = (
        {name: tuple(t.shape) for name, t in build_model(paper_config(c)).state_dict().items()}
        for c in ("MultiPoseNet/Lite_R_18.yaml", "quick/lite_drawn.yaml")
    )
    assert family == drawn
