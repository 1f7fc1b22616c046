"""The single-person network by the commands: trained, evaluated in annotated boxes, drawn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from mpn_d2.codecs.heatmap import encode_heatmaps
from mpn_d2.data.datasets import load_pose_dicts, register_pose_datasets
from mpn_d2.engine.build import build_pose_model
from mpn_d2.engine.stages import evaluate, train
from mpn_d2.engine.trainer import PoseTrainer
from mpn_d2.engine.validation import validation_loss
from mpn_d2.structures.outputs import HeatmapOutputs

CONFIG = "quick/single_person_drawn.yaml"
# Small, and deep enough to see all of a crop.
SMALL = ["MODEL.RESNETS.DEPTH", "50", "MODEL.RESNETS.RES2_OUT_CHANNELS", "16"]
SMALL += ["MODEL.RESNETS.STEM_OUT_CHANNELS", "16", "MODEL.RESNETS.WIDTH_PER_GROUP", "8"]
SMALL += ["MODEL.FPN.OUT_CHANNELS", "16", "MODEL.KP_SUBNET.SMOOTH_DIM", "32"]
SMALL += ["DATASETS.TRAIN", "('coco_sample_two',)", "DATASETS.TEST", "('coco_sample_two',)"]
SMALL += ["DATALOADER.NUM_WORKERS", "0", "SOLVER.AMP.ENABLED", "False", "TEST.EVAL_PERIOD", "0"]
# Nothing at random: six crops to be learned by heart.
STILL = ["SINGLE_PERSON.BOX_JITTER", "0.0", "INPUT.ROTATION", "0.0", "INPUT.FLIP_PROB", "0.0"]
STILL += ["INPUT.SCALE_FACTOR", "(1.0, 1.0)", "MODEL.TARGET.SIGMA", "3.0"]
STILL += ["SINGLE_PERSON.SIZE", "(128, 96)", "SOLVER.IMS_PER_BATCH", "6"]
STILL += ["SOLVER.BASE_LR", "0.005", "SOLVER.WARMUP_ITERS", "5"]


@pytest.fixture(autouse=True)
def _registered():
    register_pose_datasets()


def test_people_of_photographs_are_learned_by_heart(paper_config, tmp_path):
    """train_net.py's way: trained, evaluated, evaluated again from the file, drawn."""
    options = [*SMALL, *STILL, "SOLVER.MAX_ITER", "60", "VIS_PERIOD", "60"]
    options += ["OUTPUT_DIR", str(tmp_path)]
    cfg = paper_config(CONFIG, options)
    results = train(cfg, "keypoint", options, resume=False)
    [(name, tasks)] = results.items()
    assert name == "coco_sample_two" and list(tasks) == ["keypoints"]
    assert tasks["keypoints"]["AP"] > 75 and tasks["keypoints"]["AP50"] == 100
    again = evaluate(cfg, weights=str(tmp_path / "model_final.pth"))
    assert again["coco_sample_two"]["keypoints"]["AP"] == tasks["keypoints"]["AP"]
    # Targets beside predictions of all six; the largest value stands in the caption.
    pictures = sorted((tmp_path / "pictures").iterdir())
    assert [p.name for p in pictures] == ["iter_0000000_people.png", "iter_0000059_people.png"]
    first, last = (np.asarray(Image.open(p)).astype(int) for p in pictures)
    assert first.shape == last.shape and first.shape[1] == 2 * (2 * 384 + 4)
    heat = slice(384 + 4, 2 * 384 + 4), slice(3 * 384 + 8, 4 * 384 + 8)
    target, learned = (last[:, columns] for columns in heat)
    before = first[:, heat[1]]
    assert abs(target - learned).mean() < abs(target - before).mean()


@pytest.mark.parametrize("size", ["(96, 72)", "(101, 67)"])
def test_clean_maps_are_full_marks(paper_config, monkeypatch, size):
    """A network that draws the targets: crops, decoding and the way back cost nothing."""
    options = [*SMALL, "SINGLE_PERSON.SIZE", size, "SINGLE_PERSON.TEST_BATCH", "5"]
    options += ["SINGLE_PERSON.MARGIN", "0.5", "DATASETS.TEST", "('coco_sample_val',)"]
    cfg = paper_config(CONFIG, options)
    model = build_pose_model(cfg).eval()
    preprocess, batches = model.preprocess_image, []

    def remembered(inputs):
        batches.append([x["instances"].gt_keypoints.tensor for x in inputs])
        return preprocess(inputs)

    def drawn(features):
        size = tuple(features["k2"].shape[-2:])
        return HeatmapOutputs(encode_heatmaps(batches[-1], 17, size, 4, 5.0), 4)

    monkeypatch.setattr(model, "preprocess_image", remembered)
    monkeypatch.setattr(model.keypoint_head, "layers", drawn)
    results = PoseTrainer.test(cfg, model)["coco_sample_val"]["keypoints"]
    assert results["AP"] > 99.5 and results["AP50"] == 100
    dicts = load_pose_dicts("coco_sample_val", is_train=False)
    people = [a for d in dicts for a in d["annotations"] if any(a.get("keypoints", [])[2::3])]
    assert sum(map(len, batches)) == len(people) and max(map(len, batches)) == 5


def test_validation_loss_is_the_mean_over_people(paper_config):
    cfg = paper_config(CONFIG, [*SMALL, "SINGLE_PERSON.SIZE", "(64, 48)"])
    torch.manual_seed(0)
    model = build_pose_model(cfg)
    value = validation_loss(cfg, model)
    assert value > 0 and value == validation_loss(cfg, model)
    cfg.INPUT.FLIP_PROB = 1.0
    assert value == validation_loss(cfg, model), "nothing at random"
    cfg.SINGLE_PERSON.MIN_KEYPOINTS = 16
    assert value != validation_loss(cfg, model)
