"""Heat maps of patches over grey images."""

from __future__ import annotations

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from torch import Tensor

_COLOURS, _OPACITY = colormaps["plasma"], 0.65


def heat_maps(crops: Tensor, scores: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Overlay scores (n, h, h) on the grey crops, uint8 (n, 3, S, S): (n, S, S, 3).

    Colours range from the lowest to the highest score of each image; images with equal scores get the lowest colour.
    """
    low, high = (end(scores, axis=(1, 2), keepdims=True) for end in (np.min, np.max))
    shares = (scores - low) / np.maximum(high - low, 1e-12)
    patch = crops.shape[-1] // scores.shape[-1]
    return tinted(shares.repeat(patch, 1).repeat(patch, 2), crops.float().mean(1).numpy() / 255)


def tinted(shares: NDArray[np.floating], grey: NDArray[np.floating] | float) -> NDArray[np.uint8]:
    """Overlay the colours of shares in [0, 1] (...) on grey in [0, 1]: (..., 3)."""
    colours = _COLOURS(shares)[..., :3]
    return (255 * (_OPACITY * colours + (1 - _OPACITY) * np.asarray(grey)[..., None])).round().astype(np.uint8)
