"""Fixed positions of the patches of a square grid."""

from __future__ import annotations

import torch
from torch import Tensor


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
