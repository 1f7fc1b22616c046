"""docs/demo.md: its Python runs as it stands, and its tables name what there is."""

from __future__ import annotations

import dataclasses
import inspect
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image

import mpn_d2
from mpn_d2.cli.demo import parse_args
from mpn_d2.engine.checkpoint import PoseCheckpointer
from mpn_d2.utils.video import VideoWriter

REPO = Path(__file__).resolve().parents[1]
PAGE = (REPO / "docs" / "demo.md").read_text()


def cells(title: str) -> list[list[str]]:
    """Names in the first cell of each row of the table under this head."""
    table = PAGE.split(f"| {title} |")[1].split("\n\n")[0].splitlines()[2:]
    return [re.findall(r"`([^`]+)`", row.split("|")[1]) for row in table]


def test_python_of_the_page_runs(tmp_path: Path, monkeypatch, sample_dir: Path, capsys):
    """With a random network that is sure of everything, on a photograph and a short video."""
    torch.manual_seed(1)
    photo = sorted((sample_dir / "train").glob("*.jpg"))[0]
    shutil.copy(photo, tmp_path / "photo.jpg")
    with VideoWriter(tmp_path / "walk.mp4", 10) as video:
        for _ in range(5):
            video.write(np.asarray(Image.open(photo).convert("RGB").resize((160, 120))))
    options = ["MODEL.PRN.NODES", 8, "MODEL.RETINANET.SCORE_THRESH_TEST", 0.0]
    options += ["TEST.DETECTIONS_PER_IMAGE", 3, "INPUT.MIN_SIZE_TEST", 96]
    (tmp_path / "output" / "demo").mkdir(parents=True)
    model = build_model(mpn_d2.get_config("quick/demo.yaml", options))
    PoseCheckpointer(model, str(tmp_path / "output" / "demo")).save("model_final")

    class Sure(mpn_d2.PosePredictor):
        """The page's, without its threshold and with a small network."""

        def __init__(self, *args: object) -> None:
            super().__init__(*args, options=options, confidence_threshold=0)

    monkeypatch.setattr(mpn_d2, "PosePredictor", Sure, raising=False)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(compile(code, "docs/demo.md", "exec"), names)
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("a person at [") for line in lines) == 3
    assert sum(re.fullmatch(r"\[1 2 3\]", line) is not None for line in lines) >= 1
    assert len(names["rows"]) == 3
    assert Image.open("drawn.png").size == Image.open("photo.jpg").size
    assert names["picture"].shape == (120, 160, 3)


def test_tables_name_all_fields_and_arguments():
    fields = {f.name for f in dataclasses.fields(mpn_d2.PosePrediction)} | {"keypoint_names"}
    assert {name for row in cells("field | shape") for name in row} == fields
    arguments = set(inspect.signature(mpn_d2.PosePredictor).parameters) - {"config"}
    assert {name for row in cells("argument | default") for name in row} == arguments


def test_table_of_options_is_the_commands(capsys):
    with pytest.raises(SystemExit):
        parse_args(["--help"])
    usage = capsys.readouterr().out.split("\n\n")[0]
    options = set(re.findall(r"(--[a-z-]+)", usage)) - {"--config-file"}
    shown = {name.split()[0] for row in cells("option") for name in row}
    assert shown == options


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".mkv", ".mov", ".webm"])
def test_videos_of_the_page_can_be_written(suffix: str):
    from mpn_d2.utils.video import check_video_suffix

    assert suffix in PAGE
    check_video_suffix(f"a{suffix}")
