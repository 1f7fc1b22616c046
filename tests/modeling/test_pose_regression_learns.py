"""Two pictures learned by heart: every pose comes out at OKS over 0.9 (spec section 14)."""

from __future__ import annotations

import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances, Keypoints
from detectron2.utils.events import EventStorage

from mpn_d2.structures.oks import pairwise_oks
from mpn_d2.structures.skeleton import get_skeleton

COCO = get_skeleton("coco")
SIZE = (64, 96)
ITERATIONS = 80


def picture(corners: list[tuple[float, float]], shape: torch.Tensor) -> dict:
    """Noise with people of one shape, each 32 x 44 pixels, at the given corners."""
    joints = torch.stack([torch.tensor(c) + shape * torch.tensor([32.0, 44.0]) for c in corners])
    keypoints = torch.cat([joints, torch.full((*joints.shape[:2], 1), 2.0)], dim=2)
    low, high = joints.amin(dim=1), joints.amax(dim=1)
    people = Instances(SIZE)
    people.gt_boxes = Boxes(torch.cat([low, high], dim=1))
    people.gt_areas = 0.53 * people.gt_boxes.area()
    people.gt_classes = torch.zeros(len(joints), dtype=torch.long)
    people.gt_keypoints = Keypoints(keypoints)
    return {
        "image": torch.randint(0, 255, (3, *SIZE), dtype=torch.uint8),
        "height": SIZE[0],
        "width": SIZE[1],
        "instances": people,
        "crowd_boxes": torch.zeros(0, 4),
        "person_mask": torch.zeros(SIZE[0] // 4, SIZE[1] // 4, dtype=torch.uint8),
        "ignore_mask": torch.zeros(SIZE[0] // 4, SIZE[1] // 4, dtype=torch.uint8),
    }


def test_two_pictures_by_heart(paper_config):
    options = ["MODEL.RESNETS.NORM", "GN", "MODEL.FPN.OUT_CHANNELS", "32"]
    options += ["MODEL.POSE_REGRESSION.HEATMAP.DIM", "32"]
    cfg = paper_config("PoseRegression/R_18_small.yaml", options)
    model = build_model(cfg).train()
    inputs = [
        picture([(4.0, 8.0), (58.0, 12.0)], torch.rand(COCO.num_keypoints, 2)),
        picture([(30.0, 15.0)], torch.rand(COCO.num_keypoints, 2)),
    ]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.002)
    with EventStorage():
        for i in range(ITERATIONS):
            optimizer.param_groups[0]["lr"] = 0.002 * min(1.0, 2 * (1 - i / ITERATIONS))
            losses = model(inputs)
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
    model.eval()
    for x, result in zip(inputs, model(inputs), strict=True):
        truth, found = x["instances"], result["instances"]
        best = found[: len(truth)]
        oks = pairwise_oks(
            truth.gt_keypoints.tensor,
            best.pred_keypoints,
            truth.gt_areas,
            torch.tensor(COCO.sigmas),
        )
        assert (oks.amax(dim=1) > 0.9).all(), "somebody is not found"
        assert (oks.amax(dim=0) > 0.9).all(), "a wrong pose is rated higher than a right one"
        assert (best.scores > 0.3).all()
