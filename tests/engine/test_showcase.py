"""When a finished training counts as one of the config at hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from mpn_d2.config import load_config
from mpn_d2.engine.showcase import goes_on

CONFIG = str(Path(__file__).resolve().parents[2] / "configs" / "quick" / "demo.yaml")


@pytest.fixture()
def load(tmp_path: Path):
    return lambda *options: load_config(CONFIG, [*options, "OUTPUT_DIR", str(tmp_path)])


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def save(cfg, folder: Path, change=lambda content: None) -> None:
    content = yaml.safe_load(cfg.dump())
    change(content)
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    (folder / "keypoint").mkdir(exist_ok=True)
    (folder / "model_final.pth").touch()


def test_what_only_the_test_knows_may_change(load, tmp_path: Path):
    save(load(), tmp_path)
    options = ["TTA.ENABLED", "True", "OKS_NMS.MODE", "hard", "EVAL.TASKS", "['bbox']"]
    options += ["MODEL.RETINANET.NMS", "soft_linear", "INPUT.MIN_SIZE_TEST", "99"]
    assert goes_on(load(*options))
    assert left(tmp_path) == ["config.yaml", "keypoint", "model_final.pth"]


def test_keys_that_came_later_count_as_their_defaults(load, tmp_path: Path):
    def forget(content: dict) -> None:
        del content["TTA"], content["MODEL"]["LOSS"]["PEAK_WEIGHT"]

    save(load(), tmp_path, forget)
    assert goes_on(load())
    assert not goes_on(load("MODEL.LOSS.PEAK_WEIGHT", "4.0"))


@pytest.mark.parametrize("change", [["SOLVER.BASE_LR", "0.5"], ["MODEL.TARGET.SIGMA", "3.0"]])
def test_another_training_is_removed(load, tmp_path: Path, capsys, change):
    save(load(), tmp_path)
    assert not goes_on(load(*change))
    assert left(tmp_path) == ["config.yaml"]
    assert "another config" in capsys.readouterr().out


def test_no_or_a_broken_config(load, tmp_path: Path):
    assert not goes_on(load())
    (tmp_path / "config.yaml").write_text("{[")
    assert not goes_on(load())
