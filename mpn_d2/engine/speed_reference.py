"""The top-down network that speed is compared with: Detectron2's Keypoint R-CNN (design 7.14)."""

from __future__ import annotations

import torch
from detectron2 import model_zoo
from detectron2.modeling import build_model
from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.structures import Boxes, Instances
from torch import nn

PROPOSALS = 1000
_ZOO = {"keypoint_rcnn": "COCO-Keypoints/keypoint_rcnn_R_50_FPN_3x.yaml"}
NAMES = tuple(_ZOO)


class GivenBoxes:
    """An R-CNN with a given number of people, whatever its random weights say.

    Backbone, proposals and their suppression run as ever; the box head then gets PROPOSALS fixed
    boxes, and the other heads the people's, by `forward_with_given_boxes`.
    """

    def __init__(self, model: GeneralizedRCNN, seed: int = 0) -> None:
        """
        Args:
            model: in evaluation mode.
            seed: of the proposals.
        """
        self.model = model
        self.device = model.device
        self.seed = seed

    @torch.no_grad()
    def __call__(self, inputs: list[dict], boxes: torch.Tensor) -> list[dict]:
        """Results of images, with `boxes` (P, 4) for people in each."""
        model = self.model
        images = model.preprocess_image(inputs)
        features = model.backbone(images.tensor)
        model.proposal_generator(images, features, None)
        proposals = [self._proposals(size) for size in images.image_sizes]
        model.roi_heads._forward_box(features, proposals)
        people = []
        for size in images.image_sizes:
            given = Instances(size, pred_boxes=Boxes(boxes.to(self.device)))
            given.scores = torch.ones(len(boxes), device=self.device)
            given.pred_classes = torch.zeros(len(boxes), dtype=torch.int64, device=self.device)
            people.append(given)
        results = model.roi_heads.forward_with_given_boxes(features, people)
        return GeneralizedRCNN._postprocess(results, inputs, images.image_sizes)

    def _proposals(self, size: tuple[int, int]) -> Instances:
        """PROPOSALS boxes of all sizes all over an image of (height, width)."""
        draw = torch.Generator().manual_seed(self.seed)
        limits = torch.tensor([size[1], size[0]], dtype=torch.float32)
        middles = torch.rand(PROPOSALS, 2, generator=draw) * limits
        halves = 8 * 2 ** (5 * torch.rand(PROPOSALS, 2, generator=draw))
        boxes = Boxes(torch.cat([middles - halves, middles + halves], dim=1).to(self.device))
        boxes.clip(size)
        proposals = Instances(size, proposal_boxes=boxes)
        proposals.objectness_logits = torch.zeros(PROPOSALS, device=self.device)
        return proposals


class TopDown(GivenBoxes):
    """Detectron2's network, random weights."""

    def __init__(self, name: str, device: str, seed: int = 0) -> None:
        """
        Args:
            name: of NAMES.
            device: cpu or cuda.
            seed: of weights and proposals.
        """
        cfg = model_zoo.get_config(_ZOO[name])
        cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE = "", device
        torch.manual_seed(seed)
        model = build_model(cfg).eval()
        # Random maps are so large that its softmax over them overflows; flat ones cost the same.
        nn.init.zeros_(model.roi_heads.keypoint_head.score_lowres.weight)
        super().__init__(model, seed)
