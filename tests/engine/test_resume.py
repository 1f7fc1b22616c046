"""A run that was killed and resumed ends with the weights of one that was not, bit by bit."""

from __future__ import annotations

import json
import os
import signal

import pytest
import torch
from detectron2.engine import HookBase

from mpn_d2.data.datasets import register_pose_datasets
from mpn_d2.engine.checkpoint import PoseCheckpointer
from mpn_d2.engine.stages import evaluate, train
from mpn_d2.engine.trainer import PoseTrainer

# A network of a few thousand weights: what is tested is the bookkeeping.
OPTIONS = ["MODEL.RESNETS.DEPTH", "50", "MODEL.RESNETS.RES2_OUT_CHANNELS", "8"]
OPTIONS += ["MODEL.RESNETS.STEM_OUT_CHANNELS", "8", "MODEL.RESNETS.WIDTH_PER_GROUP", "4"]
OPTIONS += ["MODEL.FPN.OUT_CHANNELS", "8", "MODEL.FPN.NORM", "", "MODEL.RETINANET.NORM", ""]
OPTIONS += ["MODEL.KP_SUBNET.D_DIM", "8", "MODEL.KP_SUBNET.SMOOTH_DIM", "8"]
OPTIONS += ["MODEL.KP_SUBNET.NORM", "BN", "MODEL.PRN.NODES", "4", "MODEL.PRN.DROPOUT", "0.5"]
OPTIONS += ["INPUT.AUGMENTATION", "crop", "INPUT.CROP_SIZE", "64", "INPUT.FLIP_PROB", "0.5"]
OPTIONS += ["INPUT.MIN_SIZE_TEST", "64", "DATASETS.TEST", "()", "DATALOADER.NUM_WORKERS", "0"]
OPTIONS += ["SOLVER.MAX_ITER", "8", "SOLVER.CHECKPOINT_PERIOD", "2", "SOLVER.IMS_PER_BATCH", "2"]
OPTIONS += ["SOLVER.BASE_LR", "0.001", "SOLVER.STEPS", "(3,7)"]
# Everything that has a state, with a plateau that lowers the learning rate at once.
FULL = ["SOLVER.EMA.DECAY", "0.99", "SOLVER.ACCUMULATION", "2", "SOLVER.AMP.ENABLED", "True"]
FULL += ["SOLVER.LR_SCHEDULER_NAME", "ReduceOnPlateau", "SOLVER.PLATEAU.PATIENCE", "0"]
FULL += ["SOLVER.PLATEAU.THRESHOLD", "0.9", "DATASETS.TEST", "('coco_sample_two',)"]
FULL += ["TEST.EVAL_PERIOD", "2", "EVAL.TASKS", "[]", "SOLVER.CLIP_GRADIENTS.ENABLED", "True"]


class Killed(Exception):
    pass


class KillAfter(HookBase):
    """Of the stage that trains `part`, or of any."""

    def __init__(self, iterations: int, part: str = ""):
        self.iterations = iterations
        self.part = part

    def after_step(self):
        is_stage = self.part in ("", *self.trainer.cfg.MODEL.TRAIN_PARTS)
        if is_stage and self.trainer.iter + 1 == self.iterations:
            raise Killed


@pytest.fixture()
def run(tmp_path, paper_config, monkeypatch):
    register_pose_datasets()
    real = PoseTrainer.build_hooks

    def run(name, stage, options, *, kill_after=0, kill_in="", resume=False):
        def hooks(trainer):
            return [*real(trainer), *([KillAfter(kill_after, kill_in)] if kill_after else [])]

        monkeypatch.setattr(PoseTrainer, "build_hooks", hooks)
        options = [*OPTIONS, *options, "OUTPUT_DIR", str(tmp_path / name)]
        cfg = paper_config("quick/demo.yaml", options)
        if kill_after:
            with pytest.raises(Killed):
                train(cfg, stage, options, resume=resume)
        else:
            train(cfg, stage, options, resume=resume)
        return cfg, tmp_path / name

    return run


def final(folder):
    return torch.load(folder / "model_final.pth", weights_only=True)


def assert_equal(a, b, path="", share=0.0):
    """Tensors, numbers and texts of two nested states are the same, to the bit.

    Or tensors are up to `share` of their largest number, or of 1.
    """
    if isinstance(a, dict):
        assert set(a) == set(b), path
        for key in a:
            assert_equal(a[key], b[key], f"{path}/{key}", share)
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{path}/{i}", share)
    elif isinstance(a, torch.Tensor) and share:
        assert a.shape == b.shape, path
        largest = max(float(a.abs().max()), 1.0) if a.numel() else 1.0
        assert torch.allclose(a.float(), b.float(), rtol=0, atol=share * largest), path
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    else:
        assert a == b, path


@pytest.mark.parametrize(
    ("stage", "options"),
    [("keypoint", []), ("keypoint", FULL), ("assembly", []), ("assembly", FULL)],
    ids=["keypoint", "keypoint-full", "assembly", "assembly-full"],
)
def test_resumed_equals_uninterrupted(stage, options, run):
    _, whole = run("whole", stage, options)
    run("cut", stage, options, kill_after=5)
    assert (whole.parent / "cut/last_checkpoint").read_text() == "model_0000003.pth"
    # Killed once more on the way, right after a checkpoint.
    run("cut", stage, options, kill_after=6, resume=True)
    assert (whole.parent / "cut/last_checkpoint").read_text() == "model_0000005.pth"
    _, cut = run("cut", stage, options, resume=True)
    a, b = final(whole), final(cut)
    assert a["iteration"] == 7
    assert_equal(a, b)
    if options:
        state = a["trainer"]
        share = state["hooks"]["LRScheduler"]["plateau"]["share"]
        # No gain of 90 %: lowered at each evaluation but the first, those at 4, 6 and 8 iterations.
        assert share == pytest.approx(0.001)
        rate = state["_trainer"]["optimizer"]["param_groups"][0]["lr"]
        assert rate == pytest.approx(1e-6)


def test_a_chain_killed_in_every_stage_equals_one_that_was_not(run):
    options = ["SOLVER.MAX_ITER", "4", "SOLVER.EMA.DECAY", "0.9", "SOLVER.ACCUMULATION", "2"]
    _, whole = run("whole", "all", options)
    for number, stage in enumerate(("keypoint", "person", "assembly")):
        run("cut", "all", options, kill_after=3, kill_in=stage, resume=number > 0)
        assert (whole.parent / "cut" / stage / "last_checkpoint").read_text() == "model_0000001.pth"
    _, cut = run("cut", "all", options, resume=True)
    assert_equal(final(whole / "keypoint"), final(cut / "keypoint"))
    # The last bits of the person stage differ between any two runs. A step is 1e-3.
    for folder in ("person", "assembly", "."):
        assert_equal(final(whole / folder), final(cut / folder), folder, share=1e-5)


@pytest.mark.parametrize("period", [4, 8], ids=["in the middle", "at the end"])
def test_killed_in_its_first_evaluation(period, run, monkeypatch):
    options = ["TEST.EVAL_PERIOD", str(period), "DATASETS.TEST", "('coco_sample_two',)"]
    options += ["EVAL.TASKS", "['sem_seg']", "TEST.BEST_METRIC", "['sem_seg/IoU-person']"]
    _, whole = run("whole", "keypoint", options)

    def dies(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(PoseTrainer, "test", dies)
        run("cut", "keypoint", options, kill_after=99)
    _, cut = run("cut", "keypoint", options, resume=True)
    assert_equal(final(whole), final(cut))
    best = [json.loads((folder / "model_best.json").read_text()) for folder in (whole, cut)]
    assert best[0] == best[1] and best[0]["metric"] == "sem_seg/IoU-person"
    assert_equal(*(torch.load(f / "model_best.pth", weights_only=True) for f in (whole, cut)))


def test_the_comparison_sees_another_stream_of_random_numbers(run):
    _, whole = run("whole", "assembly", [])
    run("cut", "assembly", [], kill_after=5)
    # The order of people does not depend on the seed (curriculum): this is dropout alone.
    _, cut = run("cut", "assembly", ["SEED", "9"], resume=True)
    with pytest.raises(AssertionError, match="assembler"):
        assert_equal(final(whole)["model"], final(cut)["model"])


def test_averaged_weights_are_evaluated_saved_and_handed_on(run, paper_config):
    options = ["SOLVER.EMA.DECAY", "0.9"]
    cfg, folder = run("out", "keypoint", options)
    saved = final(folder)
    raw = saved["trainer"]["_trainer"]["ema"]["trained_weights"]
    assert set(raw) < set(saved["model"])
    assert any(not torch.equal(raw[name], saved["model"][name]) for name in raw)
    # Any config can evaluate it: the trained weights lie outside "model".
    plain = cfg.clone()
    plain.defrost()
    plain.SOLVER.EMA.DECAY = 0.0
    plain.DATASETS.TEST = ("coco_sample_two",)
    plain.EVAL.TASKS = ["sem_seg"]
    assert evaluate(plain, weights=str(folder / "model_final.pth"))["coco_sample_two"]["sem_seg"]
    # The next stage stands on the averages.
    run("out", "person", ["SOLVER.MAX_ITER", "1"])
    after = final(folder)
    name = "keypoint_head.predictor.weight"
    assert torch.equal(after["model"][name], saved["model"][name])
    assert not torch.equal(after["model"][name], raw[name])


def test_averaging_cannot_be_dropped_in_between(run):
    run("out", "assembly", ["SOLVER.EMA.DECAY", "0.9"], kill_after=5)
    with pytest.raises(ValueError, match=r"resume with the SOLVER\.EMA\.DECAY"):
        run("out", "assembly", [], resume=True)


def test_a_broken_loss_leaves_the_last_checkpoint(run, tmp_path):
    with pytest.raises(FloatingPointError, match=r"loss_assembly_prn became NaN .* image \d+ pers"):
        run("out", "assembly", ["SOLVER.BASE_LR", "1e400", "SOLVER.CHECKPOINT_PERIOD", "1"])
    assert (tmp_path / "out/last_checkpoint").read_text() == "model_0000000.pth"


def test_a_kill_while_writing_leaves_the_checkpoint_before(tmp_path):
    checkpointer = PoseCheckpointer(torch.nn.Linear(2, 3), str(tmp_path))
    checkpointer.save("model_0000001", iteration=1)
    child = os.fork()
    if child == 0:

        def half(data, file, **kwargs):
            file.write(b"half a checkpoint")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

        torch.save = half
        checkpointer.save("model_0000003", iteration=3)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert any(name.startswith(".partial") for name in os.listdir(tmp_path))
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "model_0000001.pth")
    assert PoseCheckpointer(torch.nn.Linear(2, 3)).load(checkpointer.get_checkpoint_file())
    # The next write of that name replaces what was left.
    checkpointer.save("model_0000003", iteration=3)
    assert sorted(os.listdir(tmp_path)) == [
        "last_checkpoint",
        "model_0000001.pth",
        "model_0000003.pth",
    ]


def test_learning_rate_in_the_log_is_that_of_the_step(run):
    _, folder = run("out", "assembly", ["SOLVER.STEPS", "(3,)", "SOLVER.MAX_ITER", "4"])
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    assert lines[-1]["lr"] == pytest.approx(1e-4)
