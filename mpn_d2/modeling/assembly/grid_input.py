"""Input grids of boxes: what the evidence sees of the keypoints in and around a box.

Letters: B boxes, K keypoint types, M points of one type, h x w cells. Two ways behind one
interface (review notes, section 5): rasterised peaks, the authors' code, and the crop of the
heatmaps, the paper's text, which alone lets gradients through. Spec section 5.4.
"""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from torch import nn

from mpn_d2.codecs import person_grid
from mpn_d2.modeling.assembly.build import GRID_INPUT_REGISTRY
from mpn_d2.structures.outputs import HeatmapOutputs


class GridInput(nn.Module):
    """Base: `forward` of predicted keypoints, `from_annotations` of true ones.

    Attributes:
        differentiable: `forward` passes gradients to the maps.
    """

    differentiable = False

    def forward(
        self,
        points: torch.Tensor,
        valid: torch.Tensor,
        boxes: torch.Tensor,
        image: torch.Tensor,
        maps: HeatmapOutputs | None,
    ) -> torch.Tensor:
        """Input grids (B, K, h, w) of predicted keypoints.

        Args:
            points: (B, K, M, 2) candidates in the image of each box, by type.
            valid: (B, K, M) bool, which of them count.
            boxes: (B, 4) x1, y1, x2, y2 in the frame of the points, image by image.
            image: (B,) int64 image of each box.
            maps: raw heatmaps of the images in the same frame, where there are any.
        """
        raise NotImplementedError

    def from_annotations(
        self, points: torch.Tensor, valid: torch.Tensor, boxes: torch.Tensor
    ) -> torch.Tensor:
        """Input grids (B, K, h, w) as perfect predictions would give them; boxes are (B, 4)."""
        raise NotImplementedError


class PeaksInput(GridInput):
    """Candidates in the enlarged box, rasterised and blurred (the authors' code).

    Args:
        size: (h, w).
        margin: share of its width and height that a box reaches further on each side.
        sigma: blur, cells.
    """

    def __init__(self, *, size: tuple[int, int], margin: float = 0.21, sigma: float = 1.0) -> None:
        super().__init__()
        self.size = size
        self.margin = margin
        self.sigma = sigma

    def forward(
        self,
        points: torch.Tensor,
        valid: torch.Tensor,
        boxes: torch.Tensor,
        image: torch.Tensor,
        maps: HeatmapOutputs | None,
    ) -> torch.Tensor:
        """See the base; the maps are not looked at."""
        return self.from_annotations(points, valid, boxes)

    def from_annotations(
        self, points: torch.Tensor, valid: torch.Tensor, boxes: torch.Tensor
    ) -> torch.Tensor:
        """See the base."""
        return person_grid.encode_input(points, valid, boxes, self.size, self.margin, self.sigma)


class HeatmapInput(GridInput):
    """The heatmaps inside the box, resized to the grid (RoIAlign); drawn Gaussians in training.

    Args:
        size: (h, w).
        sigma: of the drawn Gaussians, pixels of the annotations' frame.
        cut: drawn values below it are 0.
    """

    differentiable = True

    def __init__(self, *, size: tuple[int, int], sigma: float = 7.0, cut: float = 0.01) -> None:
        super().__init__()
        self.size = size
        self.sigma = sigma
        self.cut = cut

    def forward(
        self,
        points: torch.Tensor,
        valid: torch.Tensor,
        boxes: torch.Tensor,
        image: torch.Tensor,
        maps: HeatmapOutputs | None,
    ) -> torch.Tensor:
        """See the base; of the points only K is looked at. ValueError without maps."""
        if maps is None:
            raise ValueError(
                "MODEL.PRN.INPUT_MODE heatmap needs the keypoint maps; use peaks for keypoints "
                "that come without them"
            )
        heatmaps = maps.maps[:, : points.shape[1]]
        per_image = [boxes[image == index] for index in range(len(heatmaps))]
        return person_grid.crop_heatmaps(heatmaps, maps.stride, per_image, self.size)

    def from_annotations(
        self, points: torch.Tensor, valid: torch.Tensor, boxes: torch.Tensor
    ) -> torch.Tensor:
        """See the base."""
        return person_grid.draw_heatmaps(points, valid, boxes, self.size, self.sigma, self.cut)


@GRID_INPUT_REGISTRY.register_as("peaks")
def build_peaks(cfg: CfgNode) -> PeaksInput:
    """The default."""
    return PeaksInput(
        size=tuple(cfg.MODEL.PRN.CROP),
        margin=cfg.MODEL.PRN.BOX_MARGIN,
        sigma=cfg.MODEL.PRN.INPUT_SIGMA,
    )


@GRID_INPUT_REGISTRY.register_as("heatmap")
def build_heatmap(cfg: CfgNode) -> HeatmapInput:
    """The literal text of the paper."""
    return HeatmapInput(
        size=tuple(cfg.MODEL.PRN.CROP), sigma=cfg.MODEL.TARGET.SIGMA, cut=cfg.MODEL.TARGET.CUT
    )
