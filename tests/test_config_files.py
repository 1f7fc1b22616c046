"""Configs by name: from the repository, and as after an installation."""

from __future__ import annotations

from pathlib import Path

import pytest
from detectron2.config import CfgNode

import mpn_d2
from mpn_d2 import config_files
from mpn_d2.config import load_config

REPO = Path(__file__).resolve().parents[1]


def test_configs_by_name():
    cfg = mpn_d2.get_config("quick/demo.yaml", ["MODEL.PRN.NODES", 8])
    assert isinstance(cfg, CfgNode) and not cfg.is_frozen()
    path = str(REPO / "configs" / "quick" / "demo.yaml")
    assert cfg == load_config(path, ["MODEL.PRN.NODES", "8"])
    assert mpn_d2.get_config(path) == load_config(path)


def test_installed_configs_come_first(tmp_path: Path, monkeypatch):
    """setup.py puts them into the package."""
    folders = (tmp_path / "configs", REPO / "configs")
    (tmp_path / "configs" / "deep").mkdir(parents=True)
    file = tmp_path / "configs" / "deep" / "one.yaml"
    file.write_text("SEED: 5\n")
    assert config_files._FOLDERS[0] == REPO / "mpn_d2" / "configs"
    monkeypatch.setattr(config_files, "_FOLDERS", folders)
    assert mpn_d2.get_config("deep/one.yaml").SEED == 5
    # A file of the user's comes before both.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "one.yaml").write_text("SEED: 6\n")
    assert mpn_d2.get_config("deep/one.yaml").SEED == 6


def test_unknown_names_and_keys():
    with pytest.raises(FileNotFoundError, match=r"R_5.yaml: .*near: MultiPoseNet/R_50"):
        mpn_d2.get_config("MultiPoseNet/R_5.yaml")
    with pytest.raises(ValueError, match="MODEL.NO_KEY"):
        mpn_d2.get_config("quick/demo.yaml", ["MODEL.NO_KEY", "1"])


def test_names_of_the_package():
    assert {"PosePredictor", "PosePrediction", "get_config"} <= set(dir(mpn_d2))
    assert mpn_d2.PosePredictor.__module__ == "mpn_d2.engine.pose_predictor"
    with pytest.raises(AttributeError, match="no attribute 'Other'"):
        mpn_d2.Other  # noqa: B018
