"""One assignment with all that led to it, to be looked at."""

from __future__ import annotations

import torch
from torch import nn

from mpn_d2.evaluation.scenes import Scene
from mpn_d2.modeling.assembly.grid_evidence import GridEvidence
from mpn_d2.modeling.assembly.people_batch import PeopleBatch
from mpn_d2.utils.assignment_picture import Assignment


@torch.no_grad()
def assign(assembler: nn.Module, scene: Scene) -> Assignment:
    """Assembles one image and keeps what the evidence said, on the CPU.

    Args:
        assembler: a POSE_ASSEMBLER, on any device.
        scene: keypoint candidates and person boxes of the image.
    """
    evidence = assembler.evidence
    scored = scene.box_scores is not None
    batch = assembler.collate(
        [scene.candidates.to(evidence.device)],
        [scene.boxes.to(evidence.device)],
        [scene.box_scores.to(evidence.device)] if scored else None,
    )
    grids = None
    if isinstance(evidence, GridEvidence):
        grids = evidence.network(evidence.encode_people(batch))
        rating = evidence.rate_grids(batch, grids, peaks=assembler.needs_peaks)
        grids = grids.cpu()
    else:
        rating = assembler.rate(batch)
    (poses,) = assembler.assemble(batch, rating)
    return Assignment(
        candidates=scene.candidates,
        boxes=scene.boxes,
        poses=type(poses)(poses.keypoints.cpu(), poses.scores.cpu(), poses.candidate_ids.cpu()),
        rated=batch.slot.cpu(),
        pair_scores=_scores_of_candidates(batch, rating.pair_scores, len(scene.candidates)).cpu(),
        grids=grids,
        owners=scene.owners,
        people=scene.people,
    )


def _scores_of_candidates(
    batch: PeopleBatch, pair_scores: torch.Tensor, count: int
) -> torch.Tensor:
    """(B, K, M) scores of a batch of one image to (B, C) in the order of its C candidates."""
    scores = pair_scores.new_zeros(len(pair_scores), count)
    real = batch.ids[0] >= 0
    scores[:, batch.ids[0][real]] = pair_scores[:, real]
    return scores
