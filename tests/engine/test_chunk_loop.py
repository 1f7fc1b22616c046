"""Training in chunks: optimiser steps, the same as by hand, errors; train_net end to end."""

from __future__ import annotations

import copy

import pytest
import torch
from detectron2.utils.events import EventStorage

from mpn_d2.engine.chunk_loop import ChunkTrainingLoop, build_loop
from mpn_d2.engine.loop import TrainingLoop
from mpn_d2.engine.stages import train


class Chunky(torch.nn.Module):
    """Three chunks: losses that depend on the weight, which steps in between."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(2.0))
        self.factor = factor
        self.seen = []

    def training_chunks(self, batch):
        for place in range(3):
            self.seen.append(self.weight.item())
            yield {"loss_a_b": self.factor * (place + 1) * self.weight.square()}

    def forward(self, batch):
        return {"loss_a_b": 6 * self.factor * self.weight.square()}


def loop(model, **options):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = iter([[{"image_id": 7}]] * 5)
    return ChunkTrainingLoop(model, data, optimizer, **options)


def run(trainer, steps=1):
    with EventStorage():
        for trainer.iter in range(steps):
            trainer.run_step()


def test_the_optimiser_steps_after_every_chunk():
    model = Chunky()
    run(loop(model))
    w, seen = 2.0, []
    for place in range(3):
        seen.append(w)
        w -= 0.1 * 2 * (place + 1) * w
    assert model.seen == pytest.approx(seen) and model.weight.item() == pytest.approx(w)


def test_or_once_an_image_with_the_sum():
    model = Chunky()
    run(loop(model, step_every_chunk=False))
    assert model.seen == [2.0, 2.0, 2.0]
    assert model.weight.item() == pytest.approx(2.0 - 0.1 * 2 * 6 * 2.0)


def test_a_loss_that_is_not_finite_names_image_and_iteration():
    with pytest.raises(FloatingPointError, match="loss_a_b became NaN.*iteration 0.*image 7"):
        run(loop(Chunky(float("nan"))))


def test_which_loop(paper_config):
    config = "UnifiedAssociation/unified.yaml"
    model = Chunky()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def build(*options):
        return build_loop(paper_config(config, list(options)), model, [], optimizer)

    assert type(build()) is ChunkTrainingLoop and build().step_every_chunk
    assert not build("MODEL.SEQUENCE.UPDATE", "image").step_every_chunk
    assert type(build("MODEL.SEQUENCE.EXACT_SGD", "True")) is TrainingLoop
    with pytest.raises(ValueError, match=r"MODEL\.SEQUENCE\.UPDATE is 'never'"):
        build("MODEL.SEQUENCE.UPDATE", "never")
    with pytest.raises(ValueError, match="SOLVER.ACCUMULATION 1"):
        build("SOLVER.ACCUMULATION", "2", "SOLVER.IMS_PER_BATCH", "2")


TINY = ["DATASETS.TRAIN", "('coco_sample_train',)", "DATASETS.TEST", "('coco_sample_val',)"]
TINY += ["INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MAX_SIZE_TRAIN", "96", "INPUT.CROP_SIZE", "64"]
TINY += ["INPUT.MIN_SIZE_TEST", "48", "INPUT.MAX_SIZE_TEST", "64"]
TINY += ["MODEL.HOURGLASS.WIDTH", "8", "MODEL.HOURGLASS.GROWTH", "4", "MODEL.HOURGLASS.STACKS", "1"]
TINY += ["MODEL.SEQUENCE.LSTM1.WIDTH", "8", "MODEL.SEQUENCE.LSTM2.WIDTH", "4"]
TINY += ["MODEL.SEQUENCE.MAX_ITERATIONS", "4", "MODEL.SEQUENCE.T", "2"]
TINY += ["SOLVER.MAX_ITER", "2", "STAGES.JOINT.SOLVER.MAX_ITER", "2", "DATALOADER.NUM_WORKERS", "0"]


def test_base_and_decoder_train_one_after_the_other(paper_config, tmp_path):
    from mpn_d2.data.datasets import register_pose_datasets

    register_pose_datasets()

    def run_config(name, *options):
        options = [*TINY, "STAGES.JOINT.SOLVER.IMS_PER_BATCH", "1", *options]
        cfg = paper_config(f"UnifiedAssociation/{name}", copy.copy(options))
        cfg.freeze()
        return train(cfg, "all", options, resume=False)

    base, own = tmp_path / "base", tmp_path / "own"
    results = run_config("AE.yaml", "OUTPUT_DIR", str(base))
    assert results["coco_sample_val"]["keypoints"]["AP"] >= 0
    # Random features teach nothing.
    with pytest.raises(ValueError, match="base parts would stay untrained"):
        run_config("unified.yaml", "OUTPUT_DIR", str(own))
    weights = str(base / "model_final.pth")
    options = ["EVAL.COUNT_SCORE", "0.0", "EVAL.OKS_OVERLAP", "[0.1]", "MODEL.WEIGHTS", weights]
    results = run_config("unified.yaml", "OUTPUT_DIR", str(own), *options)
    figures = results["coco_sample_val"]["keypoints"]
    assert {"AP", "count_right", "AP_overlap_0_0.1", "AP_overlap_0.1_1"} <= set(figures)
    trained = torch.load(own / "model_final.pth", weights_only=True)["model"]
    before = torch.load(weights, weights_only=True)["model"]
    for name, tensor in before.items():
        assert torch.equal(trained[name], tensor), name


class Killed(Exception):
    pass


def test_a_killed_and_resumed_run_ends_like_one_that_was_not(paper_config, tmp_path, monkeypatch):
    """Noise, running statistics, moments and averages go on; steps of one image have chunks."""
    from mpn_d2.data.datasets import register_pose_datasets
    from mpn_d2.engine.trainer import PoseTrainer

    register_pose_datasets()
    step = PoseTrainer.run_step

    def run_config(name, kill_at=None, resume=False):
        def killed(trainer):
            if trainer.iter == kill_at:
                raise Killed
            step(trainer)

        monkeypatch.setattr(PoseTrainer, "run_step", killed)
        options = [*TINY, "DATASETS.TEST", "()", "MODEL.SEQUENCE.FREEZE_BASE", "False"]
        options += ["STAGES.JOINT.SOLVER.IMS_PER_BATCH", "2", "STAGES.JOINT.SOLVER.MAX_ITER", "4"]
        options += ["SOLVER.CHECKPOINT_PERIOD", "2", "SOLVER.EMA.DECAY", "0.9"]
        options += ["SOLVER.CLIP_GRADIENTS.ENABLED", "True", "MODEL.WEIGHTS", ""]
        options += ["OUTPUT_DIR", str(tmp_path / name)]
        cfg = paper_config("UnifiedAssociation/unified.yaml", copy.copy(options))
        cfg.freeze()
        train(cfg, "all", options, resume=resume)
        return torch.load(tmp_path / name / "model_final.pth", weights_only=True)

    whole = run_config("whole")
    with pytest.raises(Killed):
        run_config("cut", kill_at=3)
    cut = run_config("cut", resume=True)
    assert whole["model"].keys() == cut["model"].keys()
    for name, tensor in whole["model"].items():
        assert torch.equal(tensor, cut["model"][name]), name
    assert whole["model"]["features.norm.num_batches_tracked"] == 4
