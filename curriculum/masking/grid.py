"""Grid-wise masking (He et al., CVPR 2022, figure 6): kept patches form a regular lattice, one of each 2 x 2 at 0.75.

Other ratios use the lattice of the nearest share; if fewer than half are removed, the removed patches form the lattice.
Single patches make the number exact.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mimcl.curriculum.masking.mask import Mask, keep_lowest, kept_patches
from mimcl.curriculum.masking.masker import Autoencoder, Masker
from mimcl.curriculum.masking.uniforms import uniforms


class GridMasker(Masker):
    """Keeps or removes one patch of every few, with a random offset per image."""

    _lattices: Tensor

    def __init__(self, patches: int, mask_ratio: float) -> None:
        super().__init__()
        self._patches, self._mask_ratio = patches, mask_ratio
        kept = kept_patches(patches, mask_ratio)
        self._keeps_lattice = 2 * kept <= patches
        share = min(kept, patches - kept) / patches
        self._every = min((math.floor(1 / share), math.ceil(1 / share)), key=lambda every: abs(1 / every - share))
        # Not persistent: not a weight.
        self.register_buffer("_lattices", _lattices(math.isqrt(patches), self._every), persistent=False)

    def propose(self, patches: Tensor, keys: Tensor, model: Autoencoder, progress: Tensor) -> Mask:
        noise, chance = uniforms(keys, self._patches + 1).split([self._patches, 1], dim=1)
        on_lattice = self._lattices == (chance * self._every).long()
        removed = ~on_lattice if self._keeps_lattice else on_lattice
        return keep_lowest(noise + removed, self._mask_ratio)


def _lattices(side: int, every: int) -> Tensor:
    """Divide the patches into `every` lattices that are shifts of one another; return each patch's lattice, (L,).

    A lattice has rows `high` apart and columns `wide` apart, with each row shifted right by `shift` from the one above.
    Of the lattices with one patch in `every`, choose the one with the largest distance between neighbours, preferring
    no shift.
    """
    shapes = [
        (high, every // high, s) for high in range(1, every + 1) if every % high == 0 for s in range(every // high)
    ]
    high, wide, shift = max(shapes, key=lambda shape: (_distance(*shape), -shape[2], -abs(shape[0] - shape[1])))
    rows, columns = (places.flatten() for places in torch.meshgrid(*[torch.arange(side)] * 2, indexing="ij"))
    return rows % high * wide + (columns - rows // high * shift) % wide


def _distance(high: int, wide: int, shift: int) -> int:
    """Return the squared distance of neighbours in a lattice, in patches."""
    below = range(1, math.isqrt(2 * high * wide) // high + 1)  # neighbours are never farther apart
    offsets = [(row * high, row * shift % wide) for row in below]
    return min([wide**2, *(down**2 + min(right, wide - right) ** 2 for down, right in offsets)])
