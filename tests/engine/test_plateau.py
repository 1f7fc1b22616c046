"""Reduce on plateau: PyTorch's own decisions on top of a warm-up, through a checkpoint."""

from __future__ import annotations

import pytest
import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from mpn_d2.engine.build import check_training_config
from mpn_d2.engine.plateau import NAME, PlateauMultiplier, build_scheduler, shared_metric

OPTIONS = ["SOLVER.LR_SCHEDULER_NAME", NAME, "TEST.EVAL_PERIOD", "2", "SOLVER.BASE_LR", "0.5"]
OPTIONS += ["SOLVER.MAX_ITER", "100", "SOLVER.WARMUP_ITERS", "0"]
FIGURES = [50, 60, 61, 61.001, 59, 61, 60.9, 70, 70, 60, 71, 71, 71, 71, 71, 71, 71, 71, 71, 71]


def make(cfg):
    weights = [torch.zeros(2, requires_grad=True), torch.zeros(3, requires_grad=True)]
    groups = [{"params": [weights[0]]}, {"params": [weights[1]], "lr": cfg.SOLVER.BASE_LR / 5}]
    optimizer = torch.optim.Adam(groups, lr=cfg.SOLVER.BASE_LR)
    return optimizer, build_scheduler(cfg, optimizer)


def rates(optimizer):
    return [group["lr"] for group in optimizer.param_groups]


@pytest.mark.parametrize("metric", ["keypoints/AP", "loss"])
def test_decides_as_pytorch_does(metric, paper_config):
    options = [*OPTIONS, "SOLVER.PLATEAU.METRIC", metric, "SOLVER.PLATEAU.MIN_LR", "0.002"]
    optimizer, scheduler = make(paper_config("quick/demo.yaml", options))
    weight = torch.zeros(1, requires_grad=True)
    plain = torch.optim.SGD([weight], lr=0.5)
    mode = "min" if metric == "loss" else "max"
    expected = ReduceLROnPlateau(plain, mode, factor=0.1, patience=3, min_lr=0.002)
    seen = set()
    for figure in FIGURES:
        for _ in range(2):
            optimizer.step()
            scheduler.step()
        scheduler.observe(figure if mode == "max" else 100 - figure)
        expected.step(figure if mode == "max" else 100 - figure)
        rate = plain.param_groups[0]["lr"]
        assert rates(optimizer) == pytest.approx([rate, rate / 5])
        seen.add(round(rate, 6))
    # Lowered several times and held by MIN_LR at last: it is no trivial agreement.
    assert seen == {0.5, 0.05, 0.005, 0.002}


def test_figures_that_are_no_numbers_are_no_gain(paper_config):
    optimizer, scheduler = make(paper_config("quick/demo.yaml", OPTIONS))
    scheduler.observe(1.0)
    for _ in range(4):
        scheduler.observe(float("nan"))
    assert rates(optimizer)[0] == pytest.approx(0.05)


def test_warm_up_and_plateau_multiply(paper_config):
    options = [*OPTIONS, "SOLVER.WARMUP_ITERS", "10", "SOLVER.WARMUP_FACTOR", "0.1"]
    options += ["SOLVER.PLATEAU.PATIENCE", "0"]
    optimizer, scheduler = make(paper_config("quick/demo.yaml", options))
    assert rates(optimizer)[0] == pytest.approx(0.05)
    for _ in range(5):
        optimizer.step()
        scheduler.step()
    assert rates(optimizer)[0] == pytest.approx(0.5 * (0.1 + 0.9 * 5 / 10))
    scheduler.observe(1.0)
    scheduler.observe(2.0)
    assert rates(optimizer)[0] == pytest.approx(0.05 * (0.1 + 0.9 * 5 / 10))
    for _ in range(95):
        optimizer.step()
        scheduler.step()
    assert rates(optimizer)[0] == pytest.approx(0.05)


def test_state_is_plain_and_goes_on(paper_config, tmp_path):
    cfg = paper_config("quick/demo.yaml", OPTIONS)
    whole, cut = make(cfg), make(cfg)
    values = [3.0, 3.0, 3.0, 3.0, 3.0, 2.0, 2.0, 2.0, 2.0, 2.0]
    for value in values:
        whole[1].observe(value)
    for value in values[:3]:
        cut[1].observe(value)
    torch.save(cut[1].state_dict(), tmp_path / "state.pth")
    optimizer, scheduler = make(cfg)
    scheduler.load_state_dict(torch.load(tmp_path / "state.pth", weights_only=True))
    for value in values[3:]:
        scheduler.observe(value)
    assert rates(optimizer) == rates(whole[0]) and rates(optimizer)[0] == pytest.approx(0.005)


def test_other_schedules_stay_detectron2s(paper_config):
    for name in ("WarmupMultiStepLR", "WarmupCosineLR"):
        cfg = paper_config("quick/demo.yaml", ["SOLVER.LR_SCHEDULER_NAME", name])
        scheduler = make(cfg)[1]
        assert not isinstance(scheduler, PlateauMultiplier)


MISTAKES = {
    "TEST.EVAL_PERIOD 0": r"needs validations: set TEST\.EVAL_PERIOD \(now 0\)",
    "DATASETS.TEST ()": r"needs validations: .* DATASETS\.TEST \(now \(\)\)",
    "SOLVER.PLATEAU.METRIC AP": r"METRIC is 'AP': it must be loss or a metric of EVAL\.TASKS",
    "SOLVER.PLATEAU.METRIC segm/AP": r"METRIC is 'segm/AP': it must be loss",
    "SOLVER.PLATEAU.FACTOR 1.0": r"SOLVER\.PLATEAU\.FACTOR is 1\.0",
    "SOLVER.PLATEAU.PATIENCE -1": r"SOLVER\.PLATEAU\.PATIENCE is -1",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named_before_training(mistake, paper_config):
    cfg = paper_config("quick/demo.yaml", [*OPTIONS, *mistake.split(" ")])
    with pytest.raises(ValueError, match=MISTAKES[mistake]):
        check_training_config(cfg)


def test_metric_of_an_evaluation():
    results = {"a": {"keypoints": {"AP": 12.5, "AR": 3.0}}, "b": {"keypoints": {"AP": 99.0}}}
    assert shared_metric(results, "a", "keypoints/AP") == 12.5
    with pytest.raises(ValueError, match=r"'keypoints/AB', .* a has keypoints/AP, keypoints/AR"):
        shared_metric(results, "a", "keypoints/AB")
    # No ground truth for any metric of the task.
    assert shared_metric({"a": {"keypoints": {}}}, "a", "keypoints/AP") != 0
