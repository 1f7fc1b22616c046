"""tools/make_demo.py on its own photographs, with two iterations a stage."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from PIL import Image
from repo_tools import load_tool

TINY = ["INPUT.MIN_SIZE_TRAIN", "(96,)", "INPUT.MIN_SIZE_TEST", "96", "SOLVER.MAX_ITER", "2"]
TINY += ["MODEL.PRN.NODES", "8", "DATALOADER.NUM_WORKERS", "0", "MODEL.DEVICE", "cpu"]
# Of design section 6, and the person mask.
NAMES = {
    f"{split}/{metric}"
    for split in ("fitted", "unseen")
    for metric in ("keypoints/AP", "bbox/AP", "sem_seg/IoU-person")
}


make_demo = load_tool("make_demo")


def run(output: Path, *options: str) -> dict:
    make_demo.main(make_demo.parse_args(["--output", str(output), *TINY, *options]))
    return json.loads((output / "results.json").read_text())


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    output = tmp_path_factory.mktemp("demo") / "out"
    return output, run(output)


def test_trains_draws_and_measures(demo, sample_dir):
    output, results = demo
    assert set(results["metrics"]) >= NAMES
    assert all(0 <= results["metrics"][name] <= 100 for name in NAMES)
    assert 0 < results["training_seconds"] <= results["seconds"]
    for split, folder in (("fitted", "train"), ("unseen", "val")):
        photographs = {p.stem: p for p in (sample_dir / folder).glob("*.jpg")}
        pictures = {p.stem: p for p in (output / split).iterdir()}
        assert set(pictures) == set(photographs) and len(pictures) >= 7
        for name, picture in pictures.items():
            assert Image.open(picture).size == Image.open(photographs[name]).size
        assert Image.open(output / f"{split}.png").width > 300


def test_a_repeat_keeps_training_and_its_time(demo, capsys, monkeypatch):
    output, first = demo
    trained = (output / "model_final.pth").stat().st_mtime_ns
    monkeypatch.setattr(make_demo, "draw", lambda *arguments: None)
    start = time.perf_counter()
    again = run(output)
    assert time.perf_counter() - start < 30
    assert "is finished: drawing and evaluating it" in capsys.readouterr().out
    assert (output / "model_final.pth").stat().st_mtime_ns == trained
    assert again["training_seconds"] == first["training_seconds"]
    assert again["metrics"] == first["metrics"]


def test_missing_metrics_are_printed_as_a_dash(demo, capsys, monkeypatch):
    output, _ = demo
    nothing = {"keypoints": {"AP": None}, "bbox": {"AP": 12.34}}
    monkeypatch.setattr(make_demo, "draw", lambda *arguments: None)
    monkeypatch.setattr(make_demo, "evaluate", lambda cfg, weights: {cfg.DATASETS.TEST[0]: nothing})
    old = (output / "results.json").read_text()
    try:
        run(output)
        rows = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert ["fitted", "-", "12.3", "-"] in rows and ["unseen", "-", "12.3", "-"] in rows
    finally:
        (output / "results.json").write_text(old)


def test_another_config_starts_anew(tmp_path, monkeypatch):
    for name in ("config.yaml", "model_final.pth", "last_checkpoint", "results.json"):
        (tmp_path / name).write_text("old")
    (tmp_path / "person").mkdir()

    def no_training(cfg, stage, options, *, resume):
        assert not resume
        assert {p.name for p in tmp_path.iterdir()} == {"config.yaml", "log.txt"}
        raise KeyboardInterrupt

    monkeypatch.setattr(make_demo, "train", no_training)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
