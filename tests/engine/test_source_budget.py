"""AP with annotated keypoints or boxes in the place of predicted ones, all from one look."""

from __future__ import annotations

import contextlib
import io
from dataclasses import replace

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes

from mpn_d2.codecs.heatmap import encode_heatmaps
from mpn_d2.data.datasets import register_pose_datasets
from mpn_d2.engine.source_budget import ROWS, source_budget
from mpn_d2.engine.trainer import PoseTrainer
from mpn_d2.evaluation import PoseEvaluator
from mpn_d2.structures.skeleton import get_skeleton

DATASET = "coco_sample_train"


@pytest.fixture()
def cfg(paper_config):
    options = ["MODEL.ASSEMBLER.EVIDENCE", "identity", "MODEL.ASSEMBLER.MATCHING", "hungarian"]
    options += ["DATASETS.TEST", f"('{DATASET}',)", "INPUT.MIN_SIZE_TEST", "160"]
    return paper_config("MultiPoseNet/R_18_small.yaml", [*options, "DATALOADER.NUM_WORKERS", "0"])


@pytest.fixture()
def model(cfg, monkeypatch):
    """Sees every second person's box, and everybody's keypoints two pixels off."""
    model = build_model(cfg).eval()
    real = model.look

    def look(inputs):
        found = []
        for x, seen in zip(inputs, real(inputs), strict=True):
            keypoints = x["instances"].gt_keypoints.tensor.clone()
            keypoints[..., 0] += 2.0
            size = tuple(seen.maps.shape[-2:])
            maps = encode_heatmaps([keypoints], keypoints.shape[1], size, seen.stride, 5.0)[0]
            if model.box_source == "pred":
                people = seen.people[:0]
                boxes = x["instances"].gt_boxes.tensor[::2]
                people = type(people)(
                    people.image_size,
                    pred_boxes=Boxes(boxes),
                    scores=torch.linspace(0.9, 0.6, len(boxes)),
                    pred_classes=torch.zeros(len(boxes), dtype=torch.long),
                )
                seen = replace(seen, people=people)
            found.append(replace(seen, maps=torch.cat([maps, seen.maps[-1:]])))
        return found

    monkeypatch.setattr(model, "look", look)
    return model


def test_rows_are_those_of_four_evaluations(cfg, model, capsys):
    register_pose_datasets()
    loader = PoseTrainer.build_test_loader(cfg, DATASET, with_annotations=True)

    budget = source_budget(cfg, model, DATASET, loader)
    printed = capsys.readouterr().out
    for row, (keypoints, boxes) in ROWS.items():
        model.keypoint_source, model.box_source = keypoints, boxes
        evaluator = PoseEvaluator(
            DATASET, tasks=["keypoints"], sigmas=get_skeleton("coco").sigmas, distributed=False
        )
        for inputs in loader:
            evaluator.process(inputs, model(inputs))
        with contextlib.redirect_stdout(io.StringIO()):
            want = evaluator.evaluate()["keypoints"]["AP"]
        assert budget[f"{row}/AP"] == pytest.approx(want), row
        assert f"{want:.1f}" in printed
    values = list(budget.values())  # pred + pred, pred + gt, gt + pred, gt + gt
    assert len(set(values)) == 4
    assert values[0] < values[1] < values[3] and values[0] < values[2] < values[3]


def test_other_models_are_refused(cfg):
    with pytest.raises(ValueError, match="EVAL.ERROR_BUDGET"):
        source_budget(cfg, torch.nn.Identity(), DATASET, [])
