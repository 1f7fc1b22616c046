"""The notebook of the documents runs from top to bottom, and is the one that its script makes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from repo_tools import load_tool

REPO = Path(__file__).resolve().parents[1]
EXAMPLES = REPO / "docs" / "examples"


@pytest.fixture(scope="module")
def maker():
    pytest.importorskip("nbclient", reason="the extra `docs` is missing: make setup brings it")
    return load_tool(EXAMPLES / "make_notebook.py")


def test_committed_notebook_is_the_one_that_the_script_makes(maker):
    import nbformat

    committed = nbformat.read(EXAMPLES / "image_to_poses.ipynb", as_version=4)
    nbformat.validate(committed)
    assert [(x.cell_type, x.source) for x in committed.cells] == [
        (x.cell_type, x.source) for x in maker.notebook().cells
    ]
    codes = [x for x in committed.cells if x.cell_type == "code"]
    assert [x.execution_count for x in codes] == list(range(1, len(codes) + 1))
    outputs = [output for x in codes for output in x.outputs]
    assert not [x for x in outputs if x.output_type == "error"]
    assert sum("image/png" in x.get("data", {}) for x in outputs) == 4


def test_notebook_runs(maker, tmp_path, monkeypatch):
    """With random weights in the place of the demo's: each cell runs, the evidence is drawn."""
    from mpn_d2.config import load_config
    from mpn_d2.engine.build import build_pose_model

    cfg = load_config(str(REPO / "configs" / "quick" / "demo.yaml"), ["MODEL.DEVICE", "cpu"])
    weights = tmp_path / "random.pth"
    torch.save({"model": build_pose_model(cfg).state_dict()}, weights)
    monkeypatch.setenv("MPN_WEIGHTS", str(weights))
    monkeypatch.setenv("PYTHONPATH", str(REPO))
    done = maker.execute(maker.notebook())
    texts = "".join(output.get("text", "") for x in done.cells for output in x.get("outputs", ()))
    assert "a cell is 4.0 pixels" not in texts  # the network sees the photograph reduced
    assert "candidates, 4 boxes; evidence (4, 17, 56, 36)" in texts
    with pytest.raises(Exception, match="no_such_name"):
        broken = maker.notebook()
        broken.cells[1].source = "no_such_name"
        broken.cells = broken.cells[:2]
        maker.execute(broken)


def test_code_and_text_are_told_apart(maker):
    assert sys.version_info >= (3, 11)
    kinds = [maker.is_code(text) for text in maker.CELLS]
    assert not kinds[0] and kinds[1] and 0 < sum(kinds) < len(kinds)
