"""Block-wise masking (algorithm 1 of BEiT, Bao et al., ICLR 2022; with MAE: He et al., CVPR 2022, figure 6).

Rectangles of random size, shape and place are removed until the ratio is reached; single patches make the number exact.
BEiT limits a block to the patches still to be removed in its image. Here the limit is their average number, so that all
blocks of all images are drawn together, in a few operations instead of hundreds of small ones.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mimcl.curriculum.masking.mask import Mask, keep_lowest, kept_patches
from mimcl.curriculum.masking.masker import Autoencoder, Masker
from mimcl.curriculum.masking.uniforms import uniforms

_BLOCKS = 24  # candidates per image: at ratio 0.75 of 14 x 14 patches they remove 0.2 too few on average
_MIN_SIZE = 16  # patches in a block
_MAX_ASPECT = 1 / 0.3  # height over width, or width over height
_SHAPES = 32  # per size: half of them wide, half tall


class BlockMasker(Masker):
    """Removes rectangles of patches."""

    _shapes: Tensor
    _max_sizes: Tensor
    _rank: Tensor

    def __init__(self, patches: int, mask_ratio: float) -> None:
        super().__init__()
        self._patches, self._mask_ratio, self._side = patches, mask_ratio, math.isqrt(patches)
        removed = patches - kept_patches(patches, mask_ratio)
        self._min_size = min(_MIN_SIZE, removed)
        # Tables, since exponentials are rounded differently on different devices. Not persistent: not weights.
        shapes = [_shapes(size, self._side) for size in range(1, removed + 1)]
        self.register_buffer("_shapes", torch.tensor(shapes), persistent=False)
        self.register_buffer("_max_sizes", torch.tensor(_max_sizes(self._min_size, removed, patches)), persistent=False)
        self.register_buffer("_rank", torch.arange(_BLOCKS, 0, -1, dtype=torch.uint8), persistent=False)

    def propose(self, patches: Tensor, keys: Tensor, model: Autoencoder, progress: Tensor) -> Mask:
        noise, chances = uniforms(keys, self._patches + 4 * _BLOCKS).split([self._patches, 4 * _BLOCKS], dim=1)
        for_size, for_shape, for_top, for_left = chances.unflatten(1, (4, _BLOCKS)).unbind(1)
        size = self._min_size + _random_below(self._max_sizes - self._min_size + 1, for_size)
        height, width = self._shapes[size - 1, _random_below(_SHAPES, for_shape)].unbind(-1)
        rows = self._within(_random_below(self._side - height + 1, for_top), height)
        columns = self._within(_random_below(self._side - width + 1, for_left), width)
        covered = rows[..., :, None] & columns[..., None, :]
        # Higher for patches that are covered earlier; 0: no block covers them.
        rank = (covered * self._rank[:, None, None]).amax(1).flatten(1)
        # Patches of the first blocks are removed. Noise chooses in the block that exceeds the ratio, or if uncovered.
        return keep_lowest(rank + noise, self._mask_ratio)

    def _within(self, start: Tensor, length: Tensor) -> Tensor:
        """Return which rows or columns lie in the intervals (B, blocks): bool (B, blocks, side)."""
        offset = torch.arange(self._side, device=start.device) - start[..., None]
        return (offset >= 0) & (offset < length[..., None])


def _shapes(size: int, side: int) -> list[tuple[int, int]]:
    """Return heights and widths of blocks of `size` patches or slightly more that fit the grid, on a log scale."""
    longest = min(side, int(math.sqrt(size * _MAX_ASPECT)))
    limit = math.log(longest * longest / size) / 2
    steps = [(2 * step + 1) / _SHAPES for step in range(_SHAPES // 2)]
    shorter = [max(round(math.sqrt(size) * math.exp(-limit * step)), math.ceil(size / longest)) for step in steps]
    flat = [(short, math.ceil(size / short)) for short in shorter]
    return flat + [(high, wide) for wide, high in flat]


def _max_sizes(min_size: int, removed: int, patches: int) -> list[int]:
    """Return the maximum size of each block: about the patches still to be removed after the blocks before it."""
    missing, sizes = float(removed), []
    for _ in range(_BLOCKS):
        sizes.append(max(min_size, round(missing)))
        free = 1 - (removed - missing) / patches  # share of the patches that no block covers yet
        missing = max(0.0, missing - (min_size + sizes[-1]) / 2 * free)
    return sizes


def _random_below(limit: Tensor | int, chance: Tensor) -> Tensor:
    """Map a random number in [0, 1) to an integer in [0, limit)."""
    return (limit * chance).long()
