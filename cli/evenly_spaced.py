"""Select evenly spaced items: images, checkpoints, rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def evenly_spaced(count: int, wanted: int) -> NDArray[np.int64]:
    """Return up to `wanted` of the numbers 0 ... count - 1, evenly spaced, with both ends; for one, the last."""
    return np.linspace(count - 1, 0, min(wanted, count)).astype(np.int64)[::-1]
