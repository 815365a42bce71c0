"""How often each sample has been drawn: draw_counts.npy, from which coverage and repeats are known for ever."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mimcl.pipeline.files import atomic_file


class DrawCounts:
    """uint32 counts (N,), by whole windows: a window is counted when it begins."""

    def __init__(self, counts: NDArray[np.uint32]) -> None:
        self.counts = counts

    def add(self, sample_ids: NDArray[np.int64]) -> None:
        """Counts one window."""
        self.counts += self._of(sample_ids)

    def without(self, sample_ids: NDArray[np.int64]) -> DrawCounts:
        """A copy in which one window, or none, is not counted."""
        return DrawCounts(self.counts - self._of(sample_ids))

    def _of(self, sample_ids: NDArray[np.int64]) -> NDArray[np.uint32]:
        return np.bincount(sample_ids, minlength=len(self.counts)).astype(np.uint32)

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
