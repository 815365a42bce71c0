"""An order in which images lie by distance, and by chance where distances hardly differ."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mimcl.curriculum.permutation import Hash64

STREAM_BAND = 48  # the place of a sample among those of like distance
_LEAST = 64  # samples of a band: fewer would be no mixture


def band_order(distance: NDArray[np.floating], bands: int, seed: int, hash64: Hash64) -> NDArray[np.int64]:
    """Sample ids (N,), the nearest to their prototype first.

    Samples sorted by `distance` (N,) are cut into `bands` of equal size, or fewer where they had less than 64 samples;
    a band comes in the order of the samples' hashes, and so do samples of one distance.
    """
    hashes = hash64(seed, np.arange(len(distance)), STREAM_BAND)
    order = np.lexsort((hashes, distance))
    size = max(-(-len(distance) // bands), _LEAST)
    return order[np.lexsort((hashes[order], np.arange(len(order)) // size))]
