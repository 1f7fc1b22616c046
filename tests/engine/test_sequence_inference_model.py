"""The recurrent decoder behind what works with every model: views pooled, prediction in Python."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from mpn_d2.engine.checkpoint import PoseCheckpointer
from mpn_d2.engine.inference_model import build_inference_model
from mpn_d2.engine.pose_predictor import PosePredictor

CONFIG = "UnifiedAssociation/quick_crowd.yaml"
TINY = ["MODEL.SEQUENCE.LSTM1.WIDTH", "8", "MODEL.SEQUENCE.MAX_ITERATIONS", "3"]
TINY += ["MODEL.SEQUENCE.OMEGA_TEST", "0.0", "MODEL.SEQUENCE.TAU", "-1.0"]
TINY += ["INPUT.MIN_SIZE_TEST", "64", "INPUT.MAX_SIZE_TEST", "96"]


def build(paper_config, *options):
    cfg = paper_config(CONFIG, [*TINY, *options])
    return build_inference_model(cfg, "", load=lambda cfg, _: build_model(cfg).eval())


def test_views_are_pooled(paper_config):
    options = ["TTA.ENABLED", "True", "TTA.FLIP", "True", "OKS_NMS.MODE", "hard"]
    with pytest.raises(ValueError, match="TTA.FUSION maps averages heatmaps"):
        build(paper_config, *options)
    model = build(paper_config, *options, "TTA.FUSION", "poses", "OKS_NMS.THRESH", "1.0")
    image = torch.randint(0, 255, (3, 80, 100), dtype=torch.uint8)
    (result,) = model([{"image": image, "height": 80, "width": 100}])
    people = result["instances"]
    # Three steps a view.
    assert len(people) == 6 and people.image_size == (80, 100)
    mirrored = model([{"image": image.flip(-1), "height": 80, "width": 100}])[0]["instances"]
    xs = people.pred_keypoints[..., 0].mean(dim=1).sort().values
    other = (100 - mirrored.pred_keypoints[..., 0].mean(dim=1)).sort().values
    torch.testing.assert_close(xs, other, atol=1e-2, rtol=1e-3)


def test_python_prediction(paper_config, tmp_path):
    cfg = paper_config(CONFIG, TINY)
    PoseCheckpointer(build_model(cfg), str(tmp_path)).save("model")
    predictor = PosePredictor(cfg, str(tmp_path / "model.pth"), confidence_threshold=0.0)
    people = predictor(np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8))
    assert len(people) == 3 and people.person_mask is None
    assert people.keypoints.shape == (3, 17, 3)


def test_a_single_person_network_refines_the_people(paper_config, tmp_path):
    refiner = paper_config("quick/single_person_drawn.yaml")
    PoseCheckpointer(build_model(refiner), str(tmp_path)).save("refiner")
    options = ["REFINE.CONFIG", "quick/single_person_drawn.yaml", "REFINE.MERGE", "fill"]
    options += ["REFINE.WEIGHTS", str(tmp_path / "refiner.pth"), "REFINE.BOX_SCORE_THRESH", "0.0"]
    # Nothing but a joint or two of each person reaches this.
    torch.manual_seed(3)
    plain = build(paper_config, "MODEL.SEQUENCE.TAU", "0.0")
    image = {"image": torch.randint(0, 255, (3, 64, 96), dtype=torch.uint8)}
    first = plain([image])[0]["instances"]
    missing = first.pred_keypoints[..., 2] == 0
    assert len(first) and missing.any() and not missing.all()
    torch.manual_seed(3)
    people = build(paper_config, "MODEL.SEQUENCE.TAU", "0.0", *options)([image])[0]["instances"]
    assert len(people) == len(first) and (people.pred_keypoints[..., 2] > 0).all()
    torch.testing.assert_close(people.pred_keypoints[~missing], first.pred_keypoints[~missing])
