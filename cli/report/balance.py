"""Which classes were drawn, where the shards are still there to tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mimcl.pipeline.files import DataError
from mimcl.pipeline.index import ShardIndex

_CHUNK = 1 << 20  # images counted at once


@dataclass(frozen=True)
class ClassBalance:
    """Shares, 0 to 1, of the labelled images and of the draws that fell on them: (C,) arrays, by falling `ratio`."""

    names: list[str]
    of_images: NDArray[np.float64]
    of_draws: NDArray[np.float64]

    @property
    def ratio(self) -> NDArray[np.float64]:
        """Draws of a class against what uniform draws would have given it."""
        return self.of_draws / self.of_images


def open_shards(config: Mapping[str, Any], marks: Mapping[str, str | None]) -> ShardIndex:
    """The index that a run draws from. Raises DataError where it is gone, or no longer that of the run."""
    root = config.get("data.root")
    if not isinstance(root, str):
        raise DataError("the configuration names no data.root")
    index = ShardIndex.load(str(root))
    if (expected := marks.get("index")) and expected != index.fingerprint:
        raise DataError(f"{root} is not what this run was trained on: it was packed again since")
    return index


def class_balance(index: ShardIndex, counts: NDArray[np.uint32]) -> ClassBalance:
    """Of draws (N,) by sample. Raises DataError where there are no classes, or counts of other data."""
    if len(counts) != index.samples:
        raise DataError(f"draw_counts.npy is of {len(counts):,} images, {index.shown} has {index.samples:,}")
    images, draws = np.zeros(len(index.classes)), np.zeros(len(index.classes))
    for start in range(0, index.samples, _CHUNK):
        rows = slice(start, start + _CHUNK)
        labelled = index.label[rows] >= 0
        labels = index.label[rows][labelled]
        images += np.bincount(labels, minlength=len(index.classes))
        draws += np.bincount(labels, weights=counts[rows][labelled], minlength=len(index.classes))
    if not images.any():
        raise DataError("the images have no labels")
    if not draws.any():
        raise DataError("no draw was counted yet")
    there = np.flatnonzero(images)
    of_images, of_draws = images[there] / images.sum(), draws[there] / draws.sum()
    order = np.argsort(-of_draws / of_images, kind="stable")
    return ClassBalance([index.classes[there[place]] for place in order], of_images[order], of_draws[order])
