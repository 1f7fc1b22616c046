"""Pictures while training: they are there, they show the batch, and training does not notice."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from detectron2.data.detection_utils import read_image
from detectron2.modeling import build_model
from torch import nn

from mpn_d2.data.datasets import register_pose_datasets
from mpn_d2.engine.pictures import build_picture_hook, draw_batch, undisturbed
from mpn_d2.engine.stages import stage_config
from mpn_d2.engine.trainer import PoseTrainer
from mpn_d2.structures.skeleton import get_skeleton

TINY = ["INPUT.MIN_SIZE_TRAIN", "(96,)", "INPUT.MAX_SIZE_TRAIN", "160", "MODEL.PRN.NODES", "8"]
TINY += ["DATALOADER.NUM_WORKERS", "0", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "3"]
TINY += ["DATASETS.TRAIN", "('coco_sample_train',)", "DATASETS.TEST", "()"]
# Statistics that move at every step, were it in training mode.
TINY += ["MODEL.RESNETS.NORM", "BN"]


def trained(paper_config, folder, stage, *options):
    """Trains three steps; returns the trainer and the states of the random generators."""
    register_pose_datasets()
    options = [*TINY, "OUTPUT_DIR", str(folder), *options]
    cfg = stage_config(paper_config("quick/demo.yaml", options), stage, options)
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    trainer = PoseTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    return trainer, (torch.rand(3), np.random.rand(3), random.random())


# Not all parts at once: two such runs in one process differ by 1e-7 in the person pyramid.
@pytest.mark.parametrize("stage", ["keypoint", "assembly"])
def test_a_run_with_pictures_equals_one_without(paper_config, tmp_path, stage):
    plain, plain_draws = trained(paper_config, tmp_path / "plain", stage)
    drawn, drawn_draws = trained(paper_config, tmp_path / "drawn", stage, "VIS_PERIOD", "2")
    a, b = plain.model.state_dict(), drawn.model.state_dict()
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    if stage == "keypoint":
        counters = [v for name, v in b.items() if name.endswith("num_batches_tracked")]
        assert counters and all(int(v) == 3 for v in counters)
    for x, y in zip(plain_draws, drawn_draws, strict=True):
        assert np.array_equal(np.asarray(x), np.asarray(y))
    assert not (tmp_path / "plain" / "pictures").exists()
    names = sorted(path.name for path in (tmp_path / "drawn" / "pictures").iterdir())
    # The first step of the run, then every second.
    assert {name[:12] for name in names} == {"iter_0000000", "iter_0000001"}
    assert len(names) == (4 if stage == "keypoint" else 2)
    if stage == "assembly":
        assert names == ["iter_0000000_people.png", "iter_0000001_people.png"]


def test_an_assembly_without_grids_has_no_pictures(paper_config):
    model = build_model(paper_config("MultiPoseNet/UCR_poses.yaml"))
    model.assembler.evidence = nn.Linear(1, 1)
    assert draw_batch(model, [{"image_id": 1}], get_skeleton("coco"), "BGR") == []


def test_pictures_show_the_images_of_the_batch(paper_config, tmp_path):
    seen = []

    class Watched(PoseTrainer):
        @classmethod
        def build_train_loader(cls, cfg, start=0):
            for batch in super().build_train_loader(cfg, start):
                seen.append(batch)
                yield batch

    register_pose_datasets()
    options = [*TINY, "OUTPUT_DIR", str(tmp_path), "VIS_PERIOD", "5", "SOLVER.MAX_ITER", "1"]
    cfg = stage_config(paper_config("quick/demo.yaml", options), "keypoint", options)
    trainer = Watched(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    for place, x in enumerate(seen[0]):
        file = tmp_path / "pictures" / f"iter_0000000_{place}_{x['image_id']}.png"
        picture = read_image(str(file), "RGB")
        height, width = x["image"].shape[-2:]
        # Three panels of four pixels of gap, two rows of a caption of 20.
        assert picture.shape == (2 * (height + 20 + 4), 3 * width + 2 * 4, 3)
        # Where nobody is annotated, the first panel is the image (BGR) itself.
        panel = picture[20 : 20 + height, :width].astype(int)
        image = x["image"].numpy().transpose(1, 2, 0)[..., ::-1].astype(int)
        assert (abs(panel - image).max(axis=2) <= 1).mean() > 0.3


def test_undisturbed_brings_back_modes_generators_and_statistics():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.BatchNorm2d(2), nn.Dropout(0.5))
    model.train()
    model[2].eval()  # a frozen part
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    with pytest.raises(KeyboardInterrupt), undisturbed(model):
        output = model(torch.rand(2, 1, 3, 3))
        np.random.rand()
        random.random()
        assert not output.requires_grad and not model.training
        raise KeyboardInterrupt
    assert [module.training for module in model] == [True, True, False, True]
    assert model.training and torch.is_grad_enabled()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert random.getstate() == states[2]


def test_period_zero_draws_nothing(paper_config):
    assert build_picture_hook(paper_config("quick/demo.yaml"), to_events=False) is None


def test_pictures_of_poses_without_heatmaps(paper_config):
    """Annotated people above predicted ones."""
    register_pose_datasets()
    everybody = ["MODEL.RETINANET.SCORE_THRESH_TEST", "0.0"]
    cfg = paper_config("PoseRegression/R_18_small.yaml", [*TINY, *everybody])
    model = build_model(cfg).eval()
    (batch,) = [x for _, x in zip(range(1), PoseTrainer.build_train_loader(cfg))]
    with torch.no_grad():
        pictures = draw_batch(model, batch, get_skeleton("coco"), cfg.INPUT.FORMAT)
        all_of_them = draw_batch(model, batch, get_skeleton("coco"), cfg.INPUT.FORMAT, 0.0)
    assert len(pictures) == len(batch) == 2
    # An untrained network is sure of nobody.
    assert not np.array_equal(pictures[0][1], all_of_them[0][1])
    for x, (name, picture) in zip(batch, pictures, strict=True):
        height, width = x["image"].shape[1:]
        assert str(x["image_id"]) in name
        assert picture.shape[0] >= 2 * height and picture.shape[1] >= width
