"""Boxes and candidates seen in a mirror: evidence of both sights has no preferred side.

For test-time augmentation: an assembler rates a mirrored image's people a little differently, as it
learned from people of the one kind. Letters as in people_batch.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from mpn_d2.modeling.assembly.people_batch import PeopleBatch
from mpn_d2.structures.outputs import HeatmapOutputs


@dataclass(frozen=True)
class Mirror:
    """What mirrors a batch.

    Attributes:
        widths: of each image, in the frame of boxes and candidates.
        flip_indices: K indices, see Skeleton.
    """

    widths: tuple[float, ...]
    flip_indices: tuple[int, ...]

    @classmethod
    def of(cls, sizes: Sequence[tuple[int, int]], flip_indices: Sequence[int]) -> Mirror:
        """For images of these (height, width)."""
        return cls(tuple(float(width) for _, width in sizes), tuple(flip_indices))

    def batch(self, batch: PeopleBatch) -> PeopleBatch:
        """The batch in the mirror; slots, images and order of candidates stay."""
        flip = list(self.flip_indices)
        width = batch.points.new_tensor(self.widths)
        of_box = width[batch.image]
        x1, y1, x2, y2 = batch.boxes.unbind(dim=1)
        points = batch.points[:, flip].clone()
        points[..., 0] = width[:, None, None] - points[..., 0]
        return replace(
            batch,
            boxes=torch.stack([of_box - x2, y1, of_box - x1, y2], dim=1),
            points=points,
            scores=batch.scores[:, flip],
            ids=batch.ids[:, flip],
        )

    def maps(self, maps: HeatmapOutputs) -> HeatmapOutputs:
        """Maps (N, K + 1, H, W) in the mirror.

        Raises:
            ValueError: maps that are padded.
        """
        width = maps.maps.shape[-1] * maps.stride
        if any(w != width for w in self.widths):
            raise ValueError(f"maps {width} pixels wide, images {self.widths}: padding in a mirror")
        channels = [*self.flip_indices, len(self.flip_indices)]
        return HeatmapOutputs(maps.maps[:, channels].flip(-1), maps.stride)

    def peaks(self, peaks: torch.Tensor, batch: PeopleBatch) -> torch.Tensor:
        """Peaks (B, K, 3) of the mirrored batch, back in the frame of `batch`."""
        back = peaks[:, list(self.flip_indices)].clone()
        back[..., 0] = back.new_tensor(self.widths)[batch.image][:, None] - back[..., 0]
        return back
