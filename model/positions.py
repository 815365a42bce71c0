"""Positions of the patches in a square grid: fixed sines and cosines, or learned ones, for a grid of any size."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import interpolate

_ROUNDING = 0.01  # of positions in [-1, 1] that were stored in bfloat16


def sin_cos_positions(width: int, side: int) -> Tensor:
    """Return fixed 2-D sine-cosine positions of a square grid, (1, 1 + side^2, width), zero for the CLS token.

    The first half of the width encodes the column, the second half the row, each as sines followed by cosines of
    position / 10000^(k / (width / 4)), k = 0 ... width / 4 - 1 (as in MAE).
    """
    if width % 4:
        raise ValueError(f"2-D sine-cosine positions need a width that is a multiple of 4 (got {width})")
    quarter = width // 4
    frequency = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    rows, columns = torch.meshgrid(*[torch.arange(side, dtype=torch.float64)] * 2, indexing="ij")
    angles = [axis.reshape(-1, 1) * frequency for axis in (columns, rows)]
    patches = torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], dim=1)
    return torch.cat([torch.zeros(1, width, dtype=torch.float64), patches])[None].float()


@torch.no_grad()
def fit_positions(positions: Tensor, side: int) -> tuple[Tensor, str]:
    """Fit positions (1, 1 + L, width) to a grid of side x side patches; return them and what was done, if anything.

    Fixed positions are computed for the grid, learned ones are interpolated.
    """
    before = math.isqrt(positions.shape[1] - 1)
    if side == before:
        return positions, ""
    fixed = sin_cos_positions(positions.shape[2], before).to(positions)
    if (positions - fixed).abs().max() < _ROUNDING:
        computed = sin_cos_positions(positions.shape[2], side).to(positions)
        return computed, f"fixed, computed for {side} x {side} patches instead of {before} x {before}"
    grid = positions[:, 1:].unflatten(1, (before, before)).permute(0, 3, 1, 2).float()
    grid = interpolate(grid, (side, side), mode="bicubic", antialias=True)
    interpolated = torch.cat([positions[:, :1], grid.flatten(2).transpose(1, 2).to(positions)], dim=1)
    return interpolated, f"learned, interpolated from {before} x {before} to {side} x {side} patches"
