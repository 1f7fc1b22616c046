"""What missed boxes and missed keypoints cost: a network's AP with either replaced by truth.

Paper section 4.3, spec section 12 (E7): keypoints and boxes, each predicted or annotated, assembled
alike. One pass of the network an image serves all four.
"""

from __future__ import annotations

import contextlib
import io
from dataclasses import replace
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.utils import comm
from torch import nn

from mpn_d2.evaluation import PoseEvaluator
from mpn_d2.modeling.meta_arch.common import final_size
from mpn_d2.structures.ground_truth import gt_candidates, gt_people
from mpn_d2.structures.skeleton import get_skeleton
from mpn_d2.utils.results import format_figure

# Keypoints, boxes.
ROWS = {
    f"{keypoints}_keypoints+{boxes}_boxes": (keypoints, boxes)
    for keypoints in ("pred", "gt")
    for boxes in ("pred", "gt")
}


def source_budget(
    cfg: CfgNode, model: nn.Module, dataset_name: str, loader: Any
) -> dict[str, float | None]:
    """Keypoint AP, 0 to 100, by row of ROWS, printed; {} on all processes but the main one.

    Args:
        cfg: of the network; EVAL.GT_BOX_FILTER leaves annotated boxes without keypoints out.
        model: a plain network that tells what it `look`s at, with predicted sources.
        dataset_name: registered, whose annotations are the truth.
        loader: its images with annotations.

    Raises:
        ValueError: another kind of model.
    """
    if not hasattr(model, "look"):
        raise ValueError(
            "EVAL.ERROR_BUDGET wants one plain pass of a network with heatmaps: switch TTA, "
            "ENSEMBLE, REFINE and OKS_NMS off, or the budget"
        )
    sigmas = get_skeleton(cfg.MODEL.SKELETON).sigmas
    evaluators = {
        row: PoseEvaluator(dataset_name, tasks=["keypoints"], sigmas=sigmas) for row in ROWS
    }
    everything = _AllSources(model, gt_box_filter=cfg.EVAL.GT_BOX_FILTER).train(model.training)
    found = inference_on_dataset(everything, loader, _ByRow(evaluators))
    if not comm.is_main_process():
        return {}
    budget = {f"{row}/AP": metrics["keypoints"]["AP"] for row, metrics in found.items()}
    print(f"\nError budget on {dataset_name}, keypoint AP:")
    print(f"{'':24}{'predicted boxes':>20}{'annotated boxes':>20}")
    for source, title in (("pred", "predicted keypoints"), ("gt", "annotated keypoints")):
        cells = [budget[f"{source}_keypoints+{boxes}_boxes/AP"] for boxes in ("pred", "gt")]
        print(f"{title:24}" + "".join(format_figure(cell, 20) for cell in cells))
    return budget


class _AllSources(nn.Module):
    """Per image {row: result}: one look, assembled from every pair of sources."""

    def __init__(self, model: nn.Module, *, gt_box_filter: bool) -> None:
        super().__init__()
        self.model = model
        self.gt_box_filter = gt_box_filter

    @torch.no_grad()
    def forward(self, batched_inputs: list[dict]) -> list[dict[str, dict]]:
        looks = self.model.look(batched_inputs)
        sizes = [final_size(x) for x in batched_inputs]
        given: dict[str, list] = {"keypoints": [], "boxes": []}
        for x, look in zip(batched_inputs, looks, strict=True):
            device, count = look.maps.device, len(look.maps) - 1
            given["keypoints"].append(gt_candidates(x["instances"], count).to(device))
            size = look.people.image_size
            given["boxes"].append(gt_people(x, size, device, self.gt_box_filter))
        results: list[dict[str, dict]] = [{} for _ in looks]
        for row, (keypoints, boxes) in ROWS.items():
            evidence = looks
            if keypoints == "gt":
                evidence = [
                    replace(e, candidates=c)
                    for e, c in zip(evidence, given["keypoints"], strict=True)
                ]
            if boxes == "gt":
                evidence = [
                    replace(e, people=p) for e, p in zip(evidence, given["boxes"], strict=True)
                ]
            found = self.model.assemble_people(evidence, sizes)
            for of_image, result in zip(results, found, strict=True):
                of_image[row] = result
        return results


class _ByRow(DatasetEvaluator):
    """An evaluator for each row of what _AllSources gives."""

    def __init__(self, evaluators: dict[str, PoseEvaluator]) -> None:
        self.evaluators = evaluators

    def reset(self) -> None:
        for evaluator in self.evaluators.values():
            evaluator.reset()

    def process(self, inputs: list[dict], outputs: list[dict[str, dict]]) -> None:
        for row, evaluator in self.evaluators.items():
            evaluator.process(inputs, [output[row] for output in outputs])

    def evaluate(self) -> dict[str, dict]:
        with contextlib.redirect_stdout(io.StringIO()):
            return {row: evaluator.evaluate() for row, evaluator in self.evaluators.items()}
