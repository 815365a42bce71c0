"""An order of the images by distance, random among images of similar distance."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mimcl.curriculum.hashing import Hash64

STREAM_BAND = 48  # the place of a sample in its band
_MIN_BAND = 64  # samples in a band; fewer would hardly be mixed


def band_order(distance: NDArray[np.floating], bands: int, seed: int, hash64: Hash64) -> NDArray[np.int64]:
    """Sample ids (N,), those nearest to their prototype first.

    Samples sorted by `distance` (N,) are cut into `bands` of equal size (fewer if a band would have under 64 samples).
    Within a band, and among equal distances, samples are ordered by their hash.
    """
    hashes = hash64(seed, np.arange(len(distance)), STREAM_BAND)
    order = np.lexsort((hashes, distance))
    size = max(-(-len(distance) // bands), _MIN_BAND)
    return order[np.lexsort((hashes[order], np.arange(len(order)) // size))]
