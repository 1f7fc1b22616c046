"""The data-flow picture: every box and arrow within it, no two boxes over one another."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from PIL import Image
from repo_tools import load_tool

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tool():
    return load_tool("draw_data_flow")


def test_boxes_are_apart_and_arrows_lead_from_one_to_another(tool):
    half = tool.HEIGHT / 2
    for (x, y, width, *_), (other_x, other_y, other_width, *_) in itertools.combinations(
        tool.BOXES.values(), 2
    ):
        apart = abs(x - other_x) >= (width + other_width) / 2, abs(y - other_y) >= 2 * half
        assert any(apart)
    for start, end in tool.ARROWS:
        assert {start, end} <= {*tool.BOXES, "heads"}
        x, y, width, height = tool.place(start)
        at = tool.edge(start, end)
        assert abs(at[0] - x) <= width / 2 and abs(at[1] - y) <= height / 2
        assert abs(at[0] - x) == width / 2 or abs(at[1] - y) == height / 2


def test_picture_is_written_whole(tool, tmp_path):
    target = tmp_path / "new" / "flow.png"
    tool.main(tool.parse_args(["--output", str(target)]))
    drawn = Image.open(target)
    committed = Image.open(REPO / "docs" / "images" / "data_flow.png")
    assert drawn.size == committed.size
    assert len(drawn.convert("RGB").getcolors(1 << 20)) > 50
    assert [p.name for p in target.parent.iterdir()] == ["flow.png"]
