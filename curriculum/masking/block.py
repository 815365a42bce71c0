"""Block-wise masking (algorithm 1 of BEiT, Bao et al., ICLR 2022; with MAE: He et al., CVPR 2022, figure 6).

Rectangles of random size, shape and place are removed until the ratio is reached; single patches make the number exact.
BEiT bounds a block by what is still missing in its image. Here it is bounded by what is missing on average, so that
all blocks of all images are drawn at once, in a few operations and not in hundreds of small ones.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mimcl.curriculum.masking.mask import Mask, keep_lowest, kept_patches
from mimcl.curriculum.masking.masker import Autoencoder, Masker
from mimcl.curriculum.masking.random import uniforms

_BLOCKS = 24  # candidates for an image: at ratio 0.75 of 14 x 14 they leave 0.2 patches missing on average
_LEAST = 16  # patches in a block
_ASPECT = 1 / 0.3  # of the longest block: height over width, or width over height
_SHAPES = 32  # of each size: one half flat, the other tall


class BlockMasker(Masker):
    """Removes rectangles of patches; learns nothing."""

    def __init__(self, patches: int, mask_ratio: float) -> None:
        super().__init__()
        self._patches, self._mask_ratio, self._side = patches, mask_ratio, math.isqrt(patches)
        removed = patches - kept_patches(patches, mask_ratio)
        self._least = min(_LEAST, removed)
        # Tables, since exponentials are not rounded alike on all devices. Not persistent: they are no weights.
        shapes = [_shapes(size, self._side) for size in range(1, removed + 1)]
        self.register_buffer("_shapes", torch.tensor(shapes), persistent=False)
        self.register_buffer("_most", torch.tensor(_most(self._least, removed, patches)), persistent=False)
        self.register_buffer("_to_come", torch.arange(_BLOCKS, 0, -1, dtype=torch.uint8), persistent=False)

    def propose(self, patches: Tensor, keys: Tensor, model: Autoencoder, progress: Tensor) -> Mask:
        noise, chances = uniforms(keys, self._patches + 4 * _BLOCKS).split([self._patches, 4 * _BLOCKS], dim=1)
        for_size, for_shape, for_top, for_left = chances.unflatten(1, (4, _BLOCKS)).unbind(1)
        size = self._least + _below(self._most - self._least + 1, for_size)
        height, width = self._shapes[size - 1, _below(_SHAPES, for_shape)].unbind(-1)
        rows = self._within(_below(self._side - height + 1, for_top), height)
        columns = self._within(_below(self._side - width + 1, for_left), width)
        covered = rows[..., :, None] & columns[..., None, :]
        # How many blocks are still to come where a patch is first covered; 0: no block covers it.
        rank = (covered * self._to_come[:, None, None]).amax(1).flatten(1)
        # The first blocks' patches are removed. Noise chooses in the block that overshoots, or among the uncovered.
        return keep_lowest(rank + noise, self._mask_ratio)

    def _within(self, start: Tensor, length: Tensor) -> Tensor:
        """Which rows, or columns, lie in stretches (B, blocks): bool (B, blocks, side)."""
        offset = torch.arange(self._side, device=start.device) - start[..., None]
        return (offset >= 0) & (offset < length[..., None])


def _shapes(size: int, side: int) -> list[tuple[int, int]]:
    """Heights and widths of blocks of `size` patches or few more that fit the grid, evenly spaced in their log."""
    longest = min(side, int(math.sqrt(size * _ASPECT)))
    limit = math.log(longest * longest / size) / 2
    steps = [(2 * step + 1) / _SHAPES for step in range(_SHAPES // 2)]
    shorter = [max(round(math.sqrt(size) * math.exp(-limit * step)), math.ceil(size / longest)) for step in steps]
    flat = [(short, math.ceil(size / short)) for short in shorter]
    return flat + [(high, wide) for wide, high in flat]


def _most(least: int, removed: int, patches: int) -> list[int]:
    """The most patches that each block may have: about what those before it leave missing, overlaps counted."""
    missing, most = float(removed), []
    for _ in range(_BLOCKS):
        most.append(max(least, round(missing)))
        free = 1 - (removed - missing) / patches
        missing = max(0.0, missing - (least + most[-1]) / 2 * free)
    return most


def _below(limit: Tensor | int, chance: Tensor) -> Tensor:
    """A whole number in [0, limit) by a chance in [0, 1)."""
    return (limit * chance).long()
