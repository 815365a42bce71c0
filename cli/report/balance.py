"""How the draws were distributed over classes, read from the run's shards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mimcl.pipeline.files import DataError
from mimcl.pipeline.index import ShardIndex

_CHUNK = 1 << 20  # images counted at a time


@dataclass(frozen=True)
class ClassBalance:
    """Each class's share of the labelled images and of their draws: (C,) arrays, sorted by falling `ratio`."""

    names: list[str]
    of_images: NDArray[np.float64]
    of_draws: NDArray[np.float64]

    @property
    def ratio(self) -> NDArray[np.float64]:
        """The share of the draws divided by the share of the images; 1 for uniform draws."""
        return self.of_draws / self.of_images


def open_shards(config: Mapping[str, Any], fingerprints: Mapping[str, str | None]) -> ShardIndex:
    """Open the index that a run draws from. Raises DataError if it is missing, or has changed since."""
    root = config.get("data.root")
    if not isinstance(root, str):
        raise DataError("the configuration has no data.root")
    index = ShardIndex.load(str(root))
    if (expected := fingerprints.get("index")) and expected != index.fingerprint:
        raise DataError(f"{root} has changed since this run was trained (its index has another fingerprint)")
    return index


def class_balance(index: ShardIndex, counts: NDArray[np.uint32]) -> ClassBalance:
    """Compute the balance from draw counts (N,). Raises DataError without classes, or for counts of other data."""
    if len(counts) != index.samples:
        raise DataError(f"draw_counts.npy has {len(counts):,} images, but {index.shown} has {index.samples:,}")
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
        raise DataError("no draws have been counted yet")
    present = np.flatnonzero(images)
    of_images, of_draws = images[present] / images.sum(), draws[present] / draws.sum()
    order = np.argsort(-of_draws / of_images, kind="stable")
    return ClassBalance([index.classes[present[place]] for place in order], of_images[order], of_draws[order])
