"""Assemblers and batches that tests share."""

from __future__ import annotations

import torch

from mpn_d2.modeling.assembly import PoseAssembler
from mpn_d2.modeling.assembly.grid_evidence import GridEvidence
from mpn_d2.modeling.assembly.grid_input import HeatmapInput, PeaksInput
from mpn_d2.modeling.assembly.grid_networks import IdentityNetwork, PoseResidualNetwork
from mpn_d2.modeling.assembly.matching import (
    ArgmaxMatching,
    HungarianMatching,
    MutualBestMatching,
    ReferenceMatching,
)
from mpn_d2.structures.outputs import Candidates

K, SIZE = 3, (56, 36)
MATCHINGS = [ReferenceMatching(), MutualBestMatching(), HungarianMatching(), ArgmaxMatching()]
ONE_TO_ONE = MATCHINGS[:3]
EMPTY_CANDIDATES = Candidates(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), torch.zeros(0))


def assembler(grid_network=None, matching=None, num_keypoints=K, mode="peaks", **options):
    evidence = GridEvidence(
        grid_input=(PeaksInput if mode == "peaks" else HeatmapInput)(size=SIZE),
        network=grid_network or IdentityNetwork(),
        num_keypoints=num_keypoints,
    )
    matching = matching or MutualBestMatching()
    return PoseAssembler(
        evidence=evidence, matching=matching, num_keypoints=num_keypoints, **options
    ).eval()


def assemble_grids(model, batch, grids):
    """Poses by the output grids (B, K, h, w) of any network."""
    return model.assemble(batch, model.evidence.rate_grids(batch, grids, peaks=model.needs_peaks))


def network(num_keypoints=K, **options):
    options = {"nodes": 8, "num_hidden": 1, **options}
    return PoseResidualNetwork(num_keypoints=num_keypoints, size=SIZE, **options).eval()


def random_batch(seed, counts=((4, 9), (0, 5), (3, 0), (7, 20), (1, 1))):
    generator = torch.Generator().manual_seed(seed)
    candidates, boxes, scores = [], [], []
    for people, joints in counts:
        corner = torch.rand(people, 2, generator=generator) * 100
        sides = torch.rand(people, 2, generator=generator) * 100 + 20
        boxes.append(torch.cat([corner, corner + sides], dim=1))
        scores.append(torch.rand(people, generator=generator))
        candidates.append(
            Candidates(
                torch.rand(joints, 2, generator=generator) * 200,
                torch.randint(0, K, (joints,), generator=generator),
                torch.rand(joints, generator=generator) * 0.9 + 0.1,
            )
        )
    return candidates, boxes, scores
