"""How often each sample has been drawn: draw_counts.npy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mimcl.pipeline.files import atomic_file

_ONE = np.uint32(1)  # in the counts' own type: with another one numpy takes twenty times as long


class DrawCounts:
    """Counts of draws for each sample, uint32 (N,). A whole window is counted when it begins."""

    def __init__(self, counts: NDArray[np.uint32]) -> None:
        self.counts = counts

    @classmethod
    def zeros(cls, samples: int) -> DrawCounts:
        """Counts of samples that were never drawn."""
        return cls(np.zeros(samples, np.uint32))

    def add(self, sample_ids: NDArray[np.int64]) -> None:
        """Count one window."""
        np.add.at(self.counts, sample_ids, _ONE)

    def without(self, sample_ids: NDArray[np.int64]) -> DrawCounts:
        """A copy in which one window is not counted; no sample ids: an equal copy."""
        copy = DrawCounts(self.counts.copy())
        np.subtract.at(copy.counts, sample_ids, _ONE)
        return copy

    @property
    def coverage(self) -> float:
        """Share of the samples drawn at least once."""
        return float(np.count_nonzero(self.counts) / len(self.counts))

    @property
    def max_repeats(self) -> int:
        return int(self.counts.max())

    def save(self, path: Path) -> None:
        with atomic_file(path) as file:
            np.save(file, self.counts, allow_pickle=False)
