"""Long runs: which checkpoints stay, the best model, where a run began, events."""

from __future__ import annotations

import json
import logging
import sys
from types import SimpleNamespace

import pytest
import torch
from detectron2.engine.hooks import PeriodicCheckpointer, PeriodicWriter
from detectron2.engine.train_loop import TrainerBase
from detectron2.utils.events import EventStorage, TensorboardXWriter

from mpn_d2.engine import hooks
from mpn_d2.engine.checkpoint import TAG, PoseCheckpointer
from mpn_d2.engine.hooks import (
    BestCheckpoint,
    NewestCheckpoints,
    ProgressPrinter,
    StartMarker,
    add_long_run_hooks,
    build_best_hook,
    build_checkpoint_hook,
    build_event_writers,
)
from mpn_d2.utils.metrics_file import read_metrics


class Trainer(TrainerBase):
    """Steps that only count; evaluates after the steps that `results` names."""

    def __init__(self, folder, results=(), metric="keypoints/AP"):
        super().__init__()
        self.model = torch.nn.Linear(1, 1)
        self.checkpointer = PoseCheckpointer(self.model, str(folder))
        self.results = dict(results)
        self.metric = metric
        self.last_results = {}

    def run_step(self):
        with torch.no_grad():
            self.model.weight.fill_(self.iter)

    def evaluate(self):
        if self.iter in self.results:
            task, metric = self.metric.split("/")
            self.last_results = {"val": {task: {metric: self.results[self.iter]}}}


def train(folder, values, *, start=0, end=None, save_every=0, metric="keypoints/AP"):
    """Trains iterations start to end; evaluations give `values` {iteration: value}."""
    trainer = Trainer(folder, values, metric)
    best = BestCheckpoint(
        checkpointer=trainer.checkpointer, metrics=["keypoints/AP", "bbox/AP"], dataset="val"
    )
    evaluation = SimpleNamespace(
        before_train=lambda: None,
        before_step=lambda: None,
        after_backward=lambda: None,
        after_step=trainer.evaluate,
        after_train=trainer.evaluate,
        trainer=None,
    )
    trainer._hooks = [evaluation]
    trainer.register_hooks([best])
    if save_every:
        trainer.register_hooks([PeriodicCheckpointer(trainer.checkpointer, save_every)])
    trainer.train(start, end or max(values) + 1)
    return best


def saved(path):
    state = torch.load(path, weights_only=True)
    return int(state["model"]["weight"]), state["iteration"]


def test_best_of_one_three_two_is_the_second_also_after_a_resume(tmp_path):
    train(tmp_path, {0: 1.0, 1: 3.0, 2: 2.0})
    assert saved(tmp_path / "model_best.pth") == (1, 1)
    best = json.loads((tmp_path / "model_best.json").read_text())
    assert best == {"dataset": "val", "metric": "keypoints/AP", "value": 3.0, "iteration": 1}
    # A resumed run knows what was reached; only a larger value counts, an equal one does not.
    train(tmp_path, {3: 2.5, 4: 3.0}, start=3)
    assert saved(tmp_path / "model_best.pth") == (1, 1)
    train(tmp_path, {5: 3.5, 6: 1.0}, start=5)
    assert saved(tmp_path / "model_best.pth") == (5, 5)


def test_best_of_a_new_run_does_not_compare_with_an_older_one(tmp_path):
    train(tmp_path, {0: 50.0})
    train(tmp_path, {0: 4.0, 1: 2.0})
    assert saved(tmp_path / "model_best.pth") == (0, 0)
    assert json.loads((tmp_path / "model_best.json").read_text())["value"] == 4.0
    # Neither does one without the file, or with a state that is no state.
    (tmp_path / "model_best.pth").unlink()
    train(tmp_path, {2: 1.0}, start=2)
    assert saved(tmp_path / "model_best.pth") == (2, 2)
    (tmp_path / "model_best.json").write_text('{"value": ')
    train(tmp_path, {3: 0.5}, start=3)
    assert saved(tmp_path / "model_best.pth") == (3, 3)


def test_evaluation_after_the_last_step_counts_too(tmp_path):
    train(tmp_path, {0: 1.0, 2: 5.0}, end=2)
    # Evaluated at trainer.iter 2, after the step of iteration 1.
    assert saved(tmp_path / "model_best.pth") == (1, 1)


def test_last_checkpoint_stays_the_newest(tmp_path):
    train(tmp_path, {0: 1.0, 3: 9.0}, end=5, save_every=2)
    assert (tmp_path / TAG).read_text() == "model_final.pth"
    (tmp_path / TAG).write_text("model_0000003.pth")
    PoseCheckpointer(torch.nn.Linear(1, 1), str(tmp_path)).save_aside("model_best", iteration=3)
    assert (tmp_path / TAG).read_text() == "model_0000003.pth"
    names = {path.name for path in tmp_path.iterdir()}
    assert not any(name.startswith(".") for name in names)


def test_first_metric_with_a_value_counts_and_none_is_told(tmp_path, caplog):
    train(tmp_path, {0: 2.0}, metric="bbox/AP")
    assert json.loads((tmp_path / "model_best.json").read_text())["metric"] == "bbox/AP"
    empty = tmp_path / "empty"
    empty.mkdir()
    with caplog.at_level(logging.WARNING, logger="mpn_d2.engine.hooks"):
        train(empty, {0: None})
    assert "TEST.BEST_METRIC" in caplog.text
    assert not list(empty.iterdir())


def run_pruned(folder, keep, start, end):
    trainer = Trainer(folder)
    trainer.register_hooks([NewestCheckpoints(trainer.checkpointer, 2, max_to_keep=keep)])
    trainer.train(start, end)


def periodic(folder):
    return sorted(path.name for path in folder.glob("model_0*.pth"))


def test_exactly_the_newest_checkpoints_stay_also_after_a_resume(tmp_path):
    run_pruned(tmp_path, 2, 0, 8)
    assert periodic(tmp_path) == ["model_0000005.pth", "model_0000007.pth"]
    assert (tmp_path / "model_final.pth").is_file()
    (tmp_path / "model_best.pth").touch()
    run_pruned(tmp_path, 2, 8, 11)
    assert periodic(tmp_path) == ["model_0000007.pth", "model_0000009.pth"]
    assert {"model_best.pth", "model_final.pth"} <= {p.name for p in tmp_path.iterdir()}


def test_a_smaller_number_to_keep_prunes_on_resuming(tmp_path):
    run_pruned(tmp_path, None, 0, 8)
    assert len(periodic(tmp_path)) == 4
    # Resumed after iteration 5: the checkpoint of 7 belongs to steps that come again.
    run_pruned(tmp_path, 1, 6, 7)
    assert periodic(tmp_path) == ["model_0000005.pth", "model_0000007.pth"]
    run_pruned(tmp_path, 1, 8, 10)
    assert periodic(tmp_path) == ["model_0000009.pth"]


def test_config_says_what_is_kept(paper_config, tmp_path):
    checkpointer = PoseCheckpointer(torch.nn.Linear(1, 1), str(tmp_path))
    options = ["DATASETS.TEST", "('val',)", "SOLVER.CHECKPOINT_KEEP", "0"]
    cfg = paper_config("quick/demo.yaml", options)
    assert build_checkpoint_hook(cfg, checkpointer).max_to_keep is None
    assert build_best_hook(cfg, checkpointer) is not None
    cfg = paper_config("quick/demo.yaml", [*options, "TEST.BEST_METRIC", "[]"])
    assert build_best_hook(cfg, checkpointer) is None
    cfg = paper_config("quick/demo.yaml", ["DATASETS.TEST", "()", "SOLVER.CHECKPOINT_KEEP", "-1"])
    assert build_best_hook(cfg, checkpointer) is None
    with pytest.raises(ValueError, match=r"SOLVER\.CHECKPOINT_KEEP is -1"):
        build_checkpoint_hook(cfg, checkpointer)


def test_best_is_kept_before_the_checkpoint_and_pictures_before_the_writers(paper_config, tmp_path):
    cfg = paper_config(
        "quick/demo.yaml",
        ["OUTPUT_DIR", str(tmp_path), "DATASETS.TEST", "('val',)", "VIS_PERIOD", "5"],
    )
    checkpointer = PoseCheckpointer(torch.nn.Linear(1, 1), str(tmp_path))
    mine = [PeriodicCheckpointer(checkpointer, 2), PeriodicWriter([])]
    add_long_run_hooks(cfg, mine, checkpointer)
    assert [type(hook).__name__ for hook in mine] == [
        "BestCheckpoint",
        "NewestCheckpoints",
        "StartMarker",
        "PictureHook",
        "PeriodicWriter",
    ]


class Logged(Trainer):
    def run_step(self):
        self.storage.put_scalars(total_loss=100.0 * self.offset + self.iter)


def run_logged(cfg, start, end, offset):
    trainer = Logged(cfg.OUTPUT_DIR)
    trainer.offset = offset
    writers = build_event_writers(cfg, end)
    # One value a line: no smoothing.
    writers[1]._window_size = 1
    trainer.register_hooks([StartMarker(), PeriodicWriter(writers, period=1)])
    trainer.train(start, end)


def test_metrics_of_resumed_and_of_new_runs_are_told_apart(paper_config, tmp_path):
    cfg = paper_config("quick/demo.yaml", ["OUTPUT_DIR", str(tmp_path)])
    run_logged(cfg, 0, 6, offset=1)
    # Resumed from the checkpoint after iteration 3, stopped at 4: iteration 5 was given up.
    run_logged(cfg, 4, 5, offset=2)
    losses = read_metrics(tmp_path / "metrics.json")["total_loss"]
    assert losses == [(0, 100), (1, 101), (2, 102), (3, 103), (4, 204)]
    run_logged(cfg, 0, 2, offset=3)
    assert read_metrics(tmp_path / "metrics.json")["total_loss"] == [(0, 300), (1, 301)]


def test_tensorboard_events_hold_values_and_pictures(paper_config, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    cfg = paper_config("quick/demo.yaml", ["OUTPUT_DIR", str(tmp_path)])
    writers = build_event_writers(cfg, 10)
    with EventStorage(4) as storage:
        storage.put_scalar("total_loss", 2.5)
        storage.put_image("pictures/0", torch.zeros(3, 4, 4, dtype=torch.uint8))
        for writer in writers[1:]:
            writer.write()
            writer.close()
        assert not storage._vis_data
    events = accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("total_loss")] == [(4, 2.5)]
    assert events.Tags()["images"] == ["pictures/0"]


def test_without_tensorboard_the_run_goes_on_and_says_so(
    paper_config, tmp_path, monkeypatch, caplog
):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    hooks.has_tensorboard.cache_clear()
    try:
        with caplog.at_level(logging.WARNING, logger="mpn_d2.engine.hooks"):
            cfg = paper_config("quick/demo.yaml", ["OUTPUT_DIR", str(tmp_path)])
            writers = build_event_writers(cfg, 10)
        assert not any(isinstance(writer, TensorboardXWriter) for writer in writers)
        assert "pip install tensorboard" in caplog.text
    finally:
        hooks.has_tensorboard.cache_clear()


def test_progress_tells_part_share_and_time_left(caplog):
    printer = ProgressPrinter(title="keypoint", max_iter=200)
    with caplog.at_level(logging.INFO, logger="detectron2.utils.events"):
        # Resumed at 100: 100 of 200 iterations were done elsewhere.
        with EventStorage(100) as storage:
            for _ in range(20):
                storage.put_scalars(time=3.0, total_loss=1.0, lr=0.1)
                storage.step()
            storage.iter = 119
            printer.write()
    # 80 iterations of 3 seconds are left.
    assert caplog.messages[0].startswith("keypoint 120/200 (60%)  eta: 0:04:00  iter: 119  ")
