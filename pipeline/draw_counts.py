"""How often each sample has been drawn: draw_counts.npy, from which coverage and repeats are known for ever."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mimcl.pipeline.files import atomic_file
from mimcl.pipeline.plan import Plan


class DrawCounts:
    """uint32 counts (N,), by whole windows: a window is counted when it begins."""

    def __init__(self, counts: NDArray[np.uint32]) -> None:
        self.counts = counts

    @classmethod
    def at(cls, position: int, plan: Plan, samples: int, path: Path) -> DrawCounts:
        """The counts of all windows begun before draw `position`, from the file of the same run where there is one.

        The file may be of an earlier or later moment; its sum tells which, and only the windows between are planned
        again.
        """
        begun = math.ceil(position / plan.window_length)
        counts = np.zeros(samples, np.uint32)
        try:
            saved = np.load(path, allow_pickle=False)
            if begun and saved.shape == counts.shape and saved.dtype == counts.dtype:
                counts = saved
        except (OSError, ValueError):  # none yet, or damaged: counted anew
            pass
        counted = math.ceil(int(counts.sum(dtype=np.uint64)) / plan.window_length)
        for number in range(begun, counted):
            counts -= _bincount(plan.window(number).sample_ids, samples)
        for number in range(counted, begun):
            counts += _bincount(plan.window(number).sample_ids, samples)
        return cls(counts)

    def add(self, sample_ids: NDArray[np.int64]) -> None:
        """Counts one window."""
        self.counts += _bincount(sample_ids, len(self.counts))

    def copy(self) -> DrawCounts:
        return DrawCounts(self.counts.copy())

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


def _bincount(sample_ids: NDArray[np.int64], samples: int) -> NDArray[np.uint32]:
    return np.bincount(sample_ids, minlength=samples).astype(np.uint32)
