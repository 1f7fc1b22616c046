"""Operations of trainings: counted on a network whose count is known, and the page's arithmetic."""

from __future__ import annotations

from pathlib import Path

import pytest
from repo_tools import load_tool

from mpn_d2.utils.results import read_results

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tool():
    return load_tool("training_cost")


def test_the_prn_costs_what_its_matrices_do(tool):
    """Two matrices of 34,272 x 1,024: forward 2 x, gradients of weights 2 x, of the hidden 1 x."""
    tool.register_pose_datasets()
    cfg = tool.stages_of("MultiPoseNet/R_50.yaml")["assembly"]
    cost = tool.stage_cost(cfg)
    products = 5 * 2 * 34272 * 1024 / 1e9
    assert (cost["batch"], cost["steps"]) == (8, 285000)
    assert cost["gflops"] == pytest.approx(products, rel=0.1)


def test_stages_have_their_own_schedules(tool):
    stages = tool.stages_of("MultiPoseNet/R_50.yaml")
    assert list(stages) == ["keypoint", "person", "assembly"]
    assert stages["person"].SOLVER.MAX_ITER == 32000
    (regression,) = tool.stages_of("PoseRegression/R_50.yaml").values()
    assert regression.SOLVER.MAX_ITER == 220875
    with pytest.raises(FileNotFoundError, match="none.yaml is missing"):
        tool.stages_of("none.yaml")


def test_hours_of_the_page_are_operations_by_the_rate(tool):
    metrics = {"A/b/keypoint/batch": 10, "A/b/keypoint/steps": 36000, "A/b/keypoint/gflops": 200.0}
    table = tool.tables({"metrics": metrics, "assumed_teraflops": 20.0})["cost"]
    cells = [x.strip() for x in table.splitlines()[-1].split("|")[1:-1]]
    # 10 x 36,000 x 200e9 = 7.2e16; at 20e12 a second one hour.
    assert cells == ["`A/b`, keypoint", "10", "36,000", "200.0", "0.07", "1.0"]
    committed = read_results(REPO / "docs" / "results" / "training_cost.json")
    page = (REPO / "docs" / "coco.md").read_text()
    assert tool.tables(committed)["cost"] in page
    with pytest.raises(SystemExit):
        tool.parse_args(["--teraflops", "0"])
