"""tools/convert_checkpoint.py: a checkpoint that loads, or one line and no file."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torchvision
from repo_tools import load_tool

from mpn_d2.utils.safe_files import TRUST

TOOL = Path(__file__).resolve().parents[2] / "tools" / "convert_checkpoint.py"
R_18 = "MultiPoseNet/R_18_small.yaml"


@pytest.fixture()
def convert(monkeypatch, capsys):
    """convert(arguments) -> (exit code, stdout, stderr)."""
    module = load_tool(TOOL)
    # Set, not deleted: monkeypatch would put back what the argument sets.
    monkeypatch.setenv(TRUST, "0")

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["convert_checkpoint.py", *map(str, arguments)])
        code = 0
        try:
            args = module.parse_args()
            module.run_command(lambda: module.main(args))
        except SystemExit as stop:
            code = stop.code
        finally:
            monkeypatch.setenv(TRUST, "0")
        return code, *capsys.readouterr()

    return call


@pytest.fixture()
def resnet(tmp_path):
    path = tmp_path / "r18.pth"
    torch.save(torchvision.models.resnet18().state_dict(), path)
    return path


def test_whole_way(convert, resnet, tmp_path):
    out = tmp_path / "new" / "trunk.pth"
    source = ["--from", "torchvision_resnet", "--input", resnet, "--output", out]
    # Under BGR, which the small config has, these weights mean nothing.
    code, _, error = convert(*source, "--config-file", R_18)
    assert code == 2 and "INPUT.FORMAT is 'BGR'" in error and not out.exists()
    code, printed, _ = convert(*source)
    assert code == 0
    assert "120 tensors (backbone.bottom_up 120)" in printed
    assert "no place for 2: fc.weight, fc.bias" in printed and "INPUT.FORMAT: RGB" in printed
    saved = torch.load(out, weights_only=True)
    assert saved["source"] == {"from": "torchvision_resnet", "file": "r18.pth"}
    assert saved["settings"]["backbone.bottom_up."]["MODEL.RESNETS.DEPTH"] == 18
    assert [p.name for p in out.parent.iterdir()] == ["trunk.pth"]


def test_weights_must_fit_the_config(convert, resnet, tmp_path):
    config = tmp_path / "narrow.yaml"
    config.write_text(
        f"_BASE_: {TOOL.parents[1]}/configs/{R_18}\n"
        "INPUT: {FORMAT: RGB}\n"
        "MODEL:\n  PIXEL_MEAN: [123.675, 116.28, 103.53]\n  PIXEL_STD: [58.395, 57.12, 57.375]\n"
    )
    out = tmp_path / "trunk.pth"
    source = ["--from", "torchvision_resnet", "--input", resnet, "--output", out]
    code, _, _ = convert(*source, "--config-file", config)
    assert code == 0 and out.is_file()
    out.unlink()
    with open(config, "a") as file:
        file.write("  RESNETS: {STEM_OUT_CHANNELS: 32}\n")
    code, _, error = convert(*source, "--config-file", config)
    assert code == 2 and not out.exists()
    assert "stem.conv1.weight is (64, 3, 7, 7), (32, 3, 7, 7) there" in error


def test_mistakes_are_one_line_and_write_nothing(convert, resnet, tmp_path):
    out = tmp_path / "out.pth"
    source = ["--from", "prn_pytorch", "--output", out, "--input"]
    (tmp_path / "broken.h5").write_bytes(b"no file of any kind")
    (tmp_path / "broken.pth").write_bytes(b"no file of any kind")
    for name, expected in (
        ("nothing.pth", "nothing.pth not found"),
        ("broken.h5", "broken.h5 is no HDF5 file"),
        ("broken.pth", "broken.pth: it is no torch file"),
        ("r18.pth", "r18.pth: not a whole checkpoint of prn_pytorch (6 missing: dens1.weight"),
    ):
        code, _, error = convert(*source, tmp_path / name)
        assert code == 2 and expected in error and error.count("\n") == 1
        assert not out.exists()
    code, _, error = convert(*source[:3], resnet, "--input", resnet)
    assert code == 2 and "is the input" in error
    code, _, error = convert(*source[:3], tmp_path / "out.h5", "--input", resnet)
    assert code == 2 and "ends in .pth" in error


def test_other_shapes_are_one_line(convert, resnet, tmp_path):
    out, bad = tmp_path / "out.pth", tmp_path / "bad.pth"
    deep = {
        f"layer{layer}.{block}.conv{i}.weight": torch.zeros(4, 4, 3, 3)
        for layer, count in enumerate((3, 4, 6, 3), start=1)
        for block in range(count)
        for i in (1, 2, 3)
    }
    whole = torch.load(resnet, weights_only=True)
    for state, name, shape in (
        (deep, "layer1.0.conv2.weight", (4, 0, 3, 3)),
        (deep, "layer1.0.conv2.weight", (4,)),
        (whole, "bn1.num_batches_tracked", (3,)),
    ):
        torch.save({**state, name: torch.zeros(shape)}, bad)
        code, _, error = convert("--from", "timm_resnet", "--input", bad, "--output", out)
        assert code == 2 and f"bad.pth: its {name} has the shape {shape}: " in error
        assert error.count("\n") == 1 and not out.exists()


def test_trust_is_asked_for(convert, tmp_path):
    state = torchvision.models.resnet18().state_dict()
    path, out = tmp_path / "with_code.pth", tmp_path / "out.pth"
    torch.save({"state_dict": state, "args": Path("somewhere")}, path)
    source = ["--from", "torchvision_resnet", "--input", path, "--output", out]
    code, _, error = convert(*source)
    assert code == 2 and "pathlib" in error and "--trust-pickle" in error and not out.exists()
    code, _, _ = convert(*source, "--trust-pickle")
    assert code == 0 and torch.load(out, weights_only=True)["model"]
