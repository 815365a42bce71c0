"""Random numbers from hashes of (seed, number, stream); the caller supplies the hash."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

# (seed, numbers, stream) -> 64 random bits for each number
Hash64 = Callable[[int, ArrayLike, int], NDArray[np.uint64]]


def unit_interval(hashes: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Numbers in [0, 1) from the upper 53 bits of each hash."""
    return (hashes >> np.uint64(11)).astype(np.float64) * 2.0**-53
