"""Colour-noise masking (ColorMAE: Hinojosa et al., ECCV 2024, arXiv 2407.13036): filtered noise instead of white noise.

With white noise W and Gaussian blurs G of two widths:

    red     G2 W           removes large regions, low frequencies
    blue    W - G2 W       removes and keeps evenly everywhere, high frequencies
    green   G1 W - G2 W    removes clusters of middle size, a band between; best in the paper
    purple  W - green      red and blue together, all but that band

The patches with the highest noise are removed. The paper crops windows from large images of noise that are filtered
once; here each draw filters noise of its own on the grid, with opposite edges joined, so that every patch is equally
likely to be removed. The widths are ours, chosen for grids of 8 x 8 patches or more: the paper's code was not read.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from mimcl.curriculum.masking.mask import Mask, keep_lowest, kept_patches
from mimcl.curriculum.masking.masker import Autoencoder, Masker
from mimcl.curriculum.masking.uniforms import uniforms

Colour = Literal["green", "blue", "red", "purple"]
_NARROW, _WIDE = 0.6, 1.6  # standard deviations of the blurs, in patches
# Weights of the noise itself, of its narrow blur, and of its wide one.
_FILTERS: dict[Colour, tuple[float, float, float]] = {
    "green": (0, 1, -1),
    "blue": (1, 0, -1),
    "red": (0, 0, 1),
    "purple": (1, -1, 1),
}


class ColourMasker(Masker):
    """Removes the patches with the highest noise of a colour; a mask depends on the draw's key only."""

    _blurs: Tensor

    def __init__(self, colour: Colour, patches: int, mask_ratio: float) -> None:
        super().__init__()
        kept_patches(patches, mask_ratio)  # may raise ValueError
        self._patches, self._mask_ratio, self._side = patches, mask_ratio, math.isqrt(patches)
        self._weights = _FILTERS[colour]
        # Not persistent: not a weight. In float64, so that rounding, which may depend on the batch, decides no order.
        blurs = torch.stack([blur(self._side, width) for width in (_NARROW, _WIDE)])
        self.register_buffer("_blurs", blurs, persistent=False)

    def propose(self, patches: Tensor, keys: Tensor, model: Autoencoder, progress: Tensor) -> Mask:
        return keep_lowest(self.noise(keys), self._mask_ratio)

    def noise(self, keys: Tensor) -> Tensor:
        """Return the filtered noise of each key (B,): float64 (B, L)."""
        white = uniforms(keys, self._patches).unflatten(1, (self._side, self._side)) - 0.5
        kinds = [white, *(blur @ white @ blur for blur in self._blurs)]  # the matrices are symmetric
        filtered = sum(weight * kind for weight, kind in zip(self._weights, kinds, strict=True) if weight)
        assert isinstance(filtered, Tensor)
        return filtered.flatten(1)


def blur(side: int, width: float) -> Tensor:
    """Return the circulant matrix, float64 (side, side), that blurs a line of patches by a Gaussian of that width."""
    places = torch.arange(side, dtype=torch.float64)
    # Every distance around the circle, several times around.
    distances = (places[:, None] - places)[None] + side * torch.arange(-4, 5, dtype=torch.float64)[:, None, None]
    weights = torch.exp(-distances.square() / (2 * width**2)).sum(0)
    return weights / weights.sum(1, keepdim=True)
