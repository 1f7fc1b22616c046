"""Order of the training images, the same again when a run goes on."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from detectron2.data.samplers import TrainingSampler


class ResumableSampler(TrainingSampler):
    """Detectron2's endless shuffled stream from a place of one's choice (design 7.8).

    The base class always begins at the first image of its stream, so that a resumed run would
    see the images of the first epoch again.
    """

    def __init__(self, *, size: int, seed: int, start: int = 0) -> None:
        """
        Args:
            size: number of images.
            seed: of the shuffling; the same on all processes.
            start: images, over all processes, that were trained on before.
        """
        super().__init__(size, seed=seed)
        self._start = start

    def __iter__(self) -> Iterator[int]:
        first = self._start + self._rank
        yield from itertools.islice(self._infinite_indices(), first, None, self._world_size)
