"""Freezing by stage: parameters and statistics of frozen parts stay, whatever the optimiser."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from mpn_d2.data.association import build_association_samples
from mpn_d2.data.dataset_mapper import PoseDatasetMapper
from mpn_d2.data.datasets import load_pose_dicts, register_pose_datasets
from mpn_d2.data.loader import trains_without_images
from mpn_d2.engine.stages import stage_config
from mpn_d2.engine.trainer import PoseTrainer

# Decay and momentum also move weights whose gradient is 0.
OPTIONS = ["SOLVER.WEIGHT_DECAY", "0.1", "SOLVER.WEIGHT_DECAY_NORM", "0.1"]
OPTIONS += ["SOLVER.MOMENTUM", "0.9", "SOLVER.BASE_LR", "0.01", "MODEL.PRN.NODES", "8"]
OPTIONS += ["INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MAX_SIZE_TRAIN", "96", "INPUT.CROP_SIZE", "64"]
OPTIONS += ["MODEL.RESNETS.NORM", "BN", "MODEL.FPN.NORM", "BN", "MODEL.KP_SUBNET.NORM", "BN"]
OPTIONS += ["MODEL.RETINANET.NORM", "BN", "DATASETS.TRAIN", "('coco_sample_train',)"]


def train_two_steps(cfg, model) -> set[str]:
    """Names in the state dict that two iterations on different images change."""
    dicts = load_pose_dicts(["coco_sample_train"], is_train=True)[:4]
    model.train()
    optimizer = PoseTrainer.build_optimizer(cfg, model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for part in (dicts[:2], dicts[2:]):
        if trains_without_images(cfg):
            inputs = build_association_samples(part, cfg.MODEL.PRN.MIN_KEYPOINTS)[:3]
        else:
            inputs = [PoseDatasetMapper(cfg, is_train=True)(d) for d in part]
        with EventStorage():
            losses = model(inputs)
        assert {name.split("_")[1] for name in losses} == set(cfg.MODEL.TRAIN_PARTS)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    return {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}


def state_names(model, part: str) -> set[str]:
    """Parameters and buffers (running mean and variance, batch count) of a part."""
    held = {
        id(tensor)
        for module in model.part_modules()[part]
        for tensor in module.state_dict(keep_vars=True).values()
    }
    return {k for k, v in model.state_dict(keep_vars=True).items() if id(v) in held}


@pytest.fixture()
def load(paper_config):
    register_pose_datasets()

    def config(stage, options=()):
        options = [*OPTIONS, *options]
        return stage_config(paper_config("MultiPoseNet/R_18_small.yaml", options), stage, options)

    return config


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("stage", ["keypoint", "person", "assembly"])
def test_a_stage_moves_all_of_its_part_and_nothing_else(load, stage, optimizer):
    cfg = load(stage, ["SOLVER.OPTIMIZER", optimizer])
    model = build_model(cfg)
    moved = train_two_steps(cfg, model)
    own = state_names(model, stage)
    assert moved <= own
    statistics = {k for k in own if k.endswith(("running_mean", "running_var", "batches_tracked"))}
    assert statistics <= moved
    assert bool(statistics) == (stage != "assembly")
    # Only a bias that a ReLU or a norm hides may stand still.
    assert all(k in moved for k in own - statistics if k.endswith("conv1.weight"))
    if stage == "person":
        trunk = [k for k in model.state_dict() if k.startswith("backbone.bottom_up.")]
        assert any("running_mean" in k for k in trunk) and not moved & set(trunk)


@pytest.mark.parametrize("mode", ["peaks", "heatmap"])
@pytest.mark.parametrize("stage", ["assembly", "joint"])
def test_fine_tuning_on_predictions_moves_the_assembly_alone(load, stage, mode):
    """Review notes 4.2, level 1; every anchor is a box, so that there are people to learn from."""
    options = ["MODEL.TRAIN_PARTS", "['assembly']", "MODEL.JOINT_LEVEL", "1"]
    options += ["MODEL.PRN.INPUT_MODE", mode, "MODEL.RETINANET.SCORE_THRESH_TEST", "0.0"]
    options += ["MODEL.RETINANET.NMS_THRESH_TEST", "1.0", "TEST.DETECTIONS_PER_IMAGE", "3000"]
    options += ["MODEL.PEAKS.THRESH", "0.0", "DATALOADER.NUM_WORKERS", "0"]
    cfg = load(stage, options)
    # Learned from images, not from annotations.
    (sample, *_) = next(iter(PoseTrainer.build_train_loader(cfg)))
    assert sample["image"].dim() == 3
    model = build_model(cfg)
    moved = train_two_steps(cfg, model)
    assert moved == state_names(model, "assembly")
    frozen = [m for part in ("keypoint", "person") for m in model.part_modules()[part]]
    assert all(p.grad is None for module in frozen for p in module.parameters())


@pytest.mark.parametrize("shared", ["True", "False"])
def test_person_stage_with_a_shared_pyramid(load, shared):
    cfg = load("person", ["MODEL.POSE_FPN.SHARED", shared])
    model = build_model(cfg)
    moved = train_two_steps(cfg, model)
    assert moved and not moved & state_names(model, "keypoint")


@pytest.mark.parametrize("stage", ["keypoint", "person", "joint"])
def test_freeze_at_holds_the_first_blocks_in_every_stage(load, stage):
    cfg = load(stage, ["MODEL.BACKBONE.FREEZE_AT", "2"])
    model = build_model(cfg)
    moved = train_two_steps(cfg, model)
    first = ("backbone.bottom_up.stem.", "backbone.bottom_up.res2.")
    assert not [k for k in moved if k.startswith(first)]
    assert [k for k in model.state_dict() if k.startswith(first) and "running_mean" in k]
    later = [k for k in moved if k.startswith("backbone.bottom_up.res3.")]
    assert bool(later) == (stage != "person")


def test_weights_pass_between_stages_of_different_freeze_at(load):
    """Frozen blocks turn into FrozenBN, which holds the same statistics under the same names."""
    trained = build_model(load("keypoint"))
    train_two_steps(load("keypoint"), trained)
    frozen = build_model(load("person", ["MODEL.BACKBONE.FREEZE_AT", "5"]))
    missing, unexpected = frozen.load_state_dict(trained.state_dict(), strict=False)
    assert not missing
    assert all(name.endswith("num_batches_tracked") for name in unexpected)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        want = trained.eval().backbone(images)
        found = frozen.eval().backbone(images)
    for name, feature in want.items():
        torch.testing.assert_close(found[name], feature, atol=1e-4, rtol=1e-4)
