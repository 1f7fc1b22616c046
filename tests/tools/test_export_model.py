"""tools/export_model.py and tools/onnx_demo.py on a small network: files, lines, failures."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from export_cases import CONFIG, REPO, SMALL, picture, small_config, small_network
from repo_tools import load_tool

from mpn_d2.engine.checkpoint import PoseCheckpointer
from mpn_d2.engine.cli import run_command
from mpn_d2.export.agreement import Agreement
from mpn_d2.export.writing import Written

tool = load_tool("export_model")
CONFIG_FILE = str(REPO / "configs" / CONFIG)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("weights")
    PoseCheckpointer(small_network(small_config()), str(folder)).save("model")
    return str(folder / "model.pth")


@pytest.fixture(scope="module")
def photo(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    cv2.imwrite(str(path), picture(70, 110, 0.6))
    return path


def line(weights: str, photo: Path, output: Path, *arguments: str, opts=()) -> list[str]:
    given = ["--config-file", CONFIG_FILE, "--output", str(output), "--images", str(photo)]
    return [*given, *arguments, "--opts", *SMALL, "MODEL.WEIGHTS", weights, *opts]


def error_of(arguments: list[str], capsys) -> str:
    """The one line that a call ends with."""
    with pytest.raises(SystemExit) as ended:
        run_command(lambda: tool.main(tool.parse_args(arguments)))
    assert ended.value.code == 2
    (last,) = capsys.readouterr().err.strip().splitlines()
    return last


def test_writes_an_onnx_file_that_the_demo_draws(weights, photo, tmp_path, capsys, monkeypatch):
    for name in ("onnx", "onnxruntime"):
        pytest.importorskip(name, reason=f"{name} is missing: the extra `export` brings it")
    options = ["MODEL.ASSEMBLER.MATCHING", "hungarian"]
    tool.main(tool.parse_args(line(weights, photo, tmp_path / "new", opts=options)))
    out = capsys.readouterr().out
    assert "MATCHING hungarian becomes mutual_best" in out and "compared with PyTorch: 4 im" in out
    (path,) = (tmp_path / "new").iterdir()
    assert path.name == "R_18_small_fp32.onnx" and f"{path}: " in out

    demo = load_tool("onnx_demo")
    session, about = demo.load(str(path))
    image = picture(70, 110, 0.6)
    found = demo.find(session, about, image)
    drawn, count = demo.draw(image, found, about, 0.5)
    assert count == (found["scores"] >= 0.5).sum() > 3
    assert drawn.shape == image.shape and (drawn != image).any()
    untouched, nobody = demo.draw(image, {**found, "person_mask": np.zeros((70, 110))}, about, 2.0)
    assert nobody == 0 and (untouched == image).all()

    # By itself: no module of this package, of PyTorch or Detectron2.
    command = [sys.executable, "-X", "importtime", str(REPO / "tools" / "onnx_demo.py")]
    done = subprocess.run(
        [*command, str(path), str(photo), str(tmp_path / "drawn.png")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0 and f"drawn.png: {count} people" in done.stdout, done.stderr[-500:]
    imported = {x.rsplit("|", 1)[-1].strip().split(".")[0] for x in done.stderr.splitlines()}
    assert "onnxruntime" in imported and not imported & {"torch", "detectron2", "mpn_d2"}
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "drawn.png")), drawn)
    (tmp_path / "model.onnx").write_bytes(b"no model")
    for arguments, words in (
        ([path, tmp_path / "no.jpg", "a.png"], "no.jpg cannot be read as an image"),
        ([tmp_path / "no.onnx", photo, "a.png"], "no.onnx"),
        ([tmp_path / "model.onnx", photo, "a.png"], "model.onnx"),
        ([path, photo, "drawn"], "extension"),
        ([path, photo, tmp_path / "no" / "a.png"], "a.png cannot be written"),
    ):
        monkeypatch.setattr(sys, "argv", ["onnx_demo.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(REPO / "tools" / "onnx_demo.py"), run_name="__main__")
        assert ended.value.code.startswith("error: ") and words in ended.value.code
        assert "\n" not in ended.value.code
    assert len((REPO / "tools" / "onnx_demo.py").read_text().splitlines()) <= 60


def test_failures_are_one_line(weights, photo, tmp_path, capsys, monkeypatch):
    def failing(*arguments: str, opts=(), images=photo) -> str:
        return error_of(line(weights, images, tmp_path / "out", *arguments, opts=opts), capsys)

    assert "TTA" in failing(opts=["TTA.ENABLED", "True"])
    assert "--format onnx" in failing("--format", "torchscript", "--precision", "int8")
    assert "nowhere: not found" in failing(images=tmp_path / "nowhere")
    assert "missing.pth" in failing(
        "--format", "torchscript", opts=["MODEL.WEIGHTS", "missing.pth"]
    )
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "pip install onnx onnxruntime" in failing()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("people", [0, 1])
def test_that_nobody_was_compared_is_said(weights, photo, tmp_path, capsys, monkeypatch, people):
    written = Written(Agreement(images=1, people=people), seconds=1.0, size=1)
    monkeypatch.setattr(tool, "write_export", lambda *args, **kwargs: written)
    tool.main(tool.parse_args(line(weights, photo, tmp_path, "--format", "torchscript")))
    assert ("no person was compared: give --images" in capsys.readouterr().out) == (people == 0)


def test_calibration_reads_no_more_images_than_it_takes(tmp_path):
    for i in range(5):
        cv2.imwrite(str(tmp_path / f"{i}.png"), picture(5, 7, 0.5))
    for i in (1, 3, 4):
        (tmp_path / f"{i}.png").write_bytes(b"no image")
    assert [name for name, _ in tool.read_images([str(tmp_path)], "BGR", 2)] == ["0.png", "2.png"]
    with pytest.raises(ValueError, match=r"1\.png"):
        tool.read_images([str(tmp_path)], "BGR")


def test_calibration_images_are_spread():
    assert tool.spread(list(range(10)), 4) == [0, 2, 5, 7]
    assert tool.spread([1, 2], 4) == [1, 2]
