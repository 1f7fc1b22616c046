"""Grid evidence: keypoints become a grid per box, a network rates its cells.

Letters: N images, B boxes that take part (all images together), K keypoint types, M candidates of
one type in the fullest image, h x w cells of a box grid. MultiPoseNet section 3.3; spec section 5.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode
from torch.nn.utils.rnn import pad_sequence

from mpn_d2.codecs import person_grid
from mpn_d2.modeling.assembly.build import EVIDENCE_REGISTRY, build_grid_input
from mpn_d2.modeling.assembly.evidence import Evidence, Rating
from mpn_d2.modeling.assembly.grid_input import GridInput
from mpn_d2.modeling.assembly.grid_networks import (
    GridNetwork,
    IdentityNetwork,
    MaxNetwork,
    PoseResidualNetwork,
    PriorNetwork,
)
from mpn_d2.modeling.assembly.people_batch import PeopleBatch
from mpn_d2.structures.outputs import HeatmapOutputs
from mpn_d2.structures.skeleton import get_skeleton


class GridEvidence(Evidence):
    """Rates candidates by a network's output in the grid of each box.

    The score of a (box, candidate) pair is the candidate's score times the output of its type
    summed over a window around its cell; 0 outside the enlarged box (spec 5.6).

    Args:
        grid_input: keypoints of a box to its input grid.
        network: input grids to output grids.
        num_keypoints: K.
        size: (h, w).
        margin: share of its width and height that a box reaches further on each side.
        window: odd side of the window, cells.
        label_sigma: blur of the training label, cells.
    """

    loss_name = "loss_assembly_prn"

    def __init__(
        self,
        *,
        grid_input: GridInput,
        network: GridNetwork,
        num_keypoints: int,
        size: tuple[int, int] = (56, 36),
        margin: float = 0.21,
        window: int = 15,
        label_sigma: float = 2.0,
    ) -> None:
        super().__init__()
        self.grid_input = grid_input
        self.network = network
        self.num_keypoints = num_keypoints
        self.size = size
        self.margin = margin
        self.window = window
        self.label_sigma = label_sigma

    @property
    def differentiable(self) -> bool:  # type: ignore[override]  # a constant in the base
        """See the base."""
        return self.grid_input.differentiable

    def rate(
        self,
        batch: PeopleBatch,
        maps: HeatmapOutputs | None = None,
        *,
        peaks: bool = False,
        oks: bool = False,
    ) -> Rating:
        """See the base."""
        return self.rate_grids(batch, self.network(self.encode_people(batch, maps)), peaks=peaks)

    def loss(self, samples: list[dict]) -> torch.Tensor:
        """See the base; samples are people."""
        return self.network.loss(*self.encode_samples(samples))

    def loss_on_predictions(
        self, batch: PeopleBatch, owners: torch.Tensor, maps: HeatmapOutputs
    ) -> torch.Tensor:
        """See the base."""
        labels = person_grid.encode_label(owners, batch.boxes, self.size, self.label_sigma)
        return self.network.loss(self.encode_people(batch, maps), labels)

    @torch.no_grad()
    def encode_samples(self, samples: list[dict]) -> tuple[torch.Tensor, torch.Tensor]:
        """Input grids and label grids of training samples, both (len(samples), K, h, w)."""
        if not samples:
            # The network is asked all the same: one that sums up over all processes (UCR) must do
            # so in each of them.
            nobody = torch.zeros(0, self.num_keypoints, *self.size, device=self.device)
            return nobody, nobody
        owners = torch.stack([s["keypoints"][s["owner"]] for s in samples]).to(self.device)
        boxes = torch.stack([s["box"] for s in samples]).to(self.device)
        people = [s.get("candidates", s["keypoints"]) for s in samples]
        by_type = pad_sequence(people, batch_first=True).to(self.device).transpose(1, 2)
        points, valid = by_type[..., :2], by_type[..., 2] > 0
        labels = person_grid.encode_label(owners, boxes, self.size, self.label_sigma)
        return self.grid_input.from_annotations(points, valid, boxes), labels

    def encode_people(self, batch: PeopleBatch, maps: HeatmapOutputs | None = None) -> torch.Tensor:
        """Input grids (B, K, h, w) of a batch; in "heatmap" mode differentiable in the maps."""
        points, valid = batch.points[batch.image], batch.ids[batch.image] >= 0
        return self.grid_input(points, valid, batch.boxes, batch.image, maps)

    def rate_grids(
        self, batch: PeopleBatch, outputs: torch.Tensor, *, peaks: bool = False
    ) -> Rating:
        """The rating that output grids (B, K, h, w) of the batch's boxes mean."""
        return Rating(
            self._pair_scores(batch, outputs), self._peaks(batch, outputs) if peaks else None
        )

    def _pair_scores(self, batch: PeopleBatch, outputs: torch.Tensor) -> torch.Tensor:
        """(B, K, M) score of each box with each candidate of its image."""
        points, scores = batch.points[batch.image], batch.scores[batch.image]
        cells = person_grid.points_to_cells(points, batch.boxes, self.size)
        sums = person_grid.window_sums(outputs, self.window).flatten(2)
        pair_scores = scores * sums.gather(2, cells[..., 1] * self.size[1] + cells[..., 0])
        inside = person_grid.in_margin(points, batch.boxes, self.margin)
        # `> 0` also turns NaN, from broken maps or weights, into "may not match".
        allowed = inside & (batch.ids[batch.image] >= 0) & (pair_scores > 0)
        return torch.where(allowed, pair_scores, 0.0)

    def _peaks(self, batch: PeopleBatch, outputs: torch.Tensor) -> torch.Tensor:
        """(B, K, 3) x, y of the largest output of each box, and that output."""
        top, cell = outputs.flatten(2).max(dim=2)
        cells = torch.stack([cell % self.size[1], cell // self.size[1]], dim=-1)
        points = person_grid.cells_to_points(cells, batch.boxes, self.size)
        return torch.cat([points, top.to(points.dtype)[..., None]], dim=-1)


def _build(cfg: CfgNode, network: GridNetwork) -> GridEvidence:
    return GridEvidence(
        grid_input=build_grid_input(cfg),
        network=network,
        margin=cfg.MODEL.PRN.BOX_MARGIN,
        window=cfg.MODEL.ASSEMBLER.WINDOW,
        label_sigma=cfg.MODEL.PRN.LABEL_SIGMA,
        **_grid_arguments(cfg),
    )


def _grid_arguments(cfg: CfgNode) -> dict[str, Any]:
    return {
        "num_keypoints": get_skeleton(cfg.MODEL.SKELETON).num_keypoints,
        "size": tuple(cfg.MODEL.PRN.CROP),
    }


def _build_prn(cfg: CfgNode, residual: bool) -> GridEvidence:
    network = PoseResidualNetwork(
        **_grid_arguments(cfg),
        nodes=cfg.MODEL.PRN.NODES,
        num_hidden=cfg.MODEL.PRN.NUM_HIDDEN,
        dropout=cfg.MODEL.PRN.DROPOUT,
        softmax=cfg.MODEL.PRN.SOFTMAX,
        residual=residual,
    )
    return _build(cfg, network)


@EVIDENCE_REGISTRY.register_as("prn")
def build_prn(cfg: CfgNode) -> GridEvidence:
    """The paper's network."""
    return _build_prn(cfg, residual=True)


@EVIDENCE_REGISTRY.register_as("prn_nonresidual")
def build_prn_nonresidual(cfg: CfgNode) -> GridEvidence:
    """The paper's ablation: the input is not added."""
    return _build_prn(cfg, residual=False)


@EVIDENCE_REGISTRY.register_as("ucr")
def build_ucr(cfg: CfgNode) -> GridEvidence:
    """The paper's baseline UCR."""
    return _build(cfg, PriorNetwork(**_grid_arguments(cfg)))


@EVIDENCE_REGISTRY.register_as("max")
def build_max(cfg: CfgNode) -> GridEvidence:
    """The paper's baseline Max."""
    return _build(cfg, MaxNetwork(sigma=cfg.MODEL.PRN.LABEL_SIGMA))


@EVIDENCE_REGISTRY.register_as("identity")
def build_identity(cfg: CfgNode) -> GridEvidence:
    """No evidence beyond the candidates themselves."""
    return _build(cfg, IdentityNetwork())
