"""Boxes of many images resized at once on their device, with the weights and the rounding of Pillow's bicubic filter.

Two matrices resize a box: one across its rows, rounded to 8 bits as Pillow does, then one down its columns. Pillow's
weights have 22 bits behind the binary point, so that every sum of weights times pixels is exact in float64, in any
order: a pixel depends neither on the other images of its batch nor on how a device multiplies matrices. Pillow 13
begins with the columns of some boxes that are higher than the result; earlier ones never do.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_SUPPORT = 2.0  # pixels of a cubic filter on each side
_UNIT = float(1 << 22)  # of Pillow's weights: 1 as a fixed-point number


def resize_boxes(pixels: Tensor, boxes: NDArray[np.integer], flips: NDArray[np.bool_], side: int) -> Tensor:
    """Resize a box of each image to a square, and mirror it where `flips`, (n,), says so.

    `pixels` is uint8 (n, H, 3, W), rows of planes; `boxes` (n, 4) are left, top, width, height inside of them. Returns
    uint8 (n, 3, side, side) on the same device.
    """
    count, height, _, width = pixels.shape
    left, top, widths, heights = boxes.T
    across = _matrices(left, widths, flips, side, width, pixels.device)
    down = _matrices(top, heights, np.zeros_like(flips), side, height, pixels.device)
    rows = _to_8_bits(pixels.reshape(count, 3 * height, width).double() @ across.mT)
    columns = _to_8_bits(down @ rows.view(count, height, 3 * side))
    return columns.view(count, side, 3, side).transpose(1, 2).to(torch.uint8)


def _matrices(
    starts: NDArray[np.integer],
    sizes: NDArray[np.integer],
    mirrored: NDArray[np.bool_],
    side: int,
    length: int,
    device: torch.device,
) -> Tensor:
    """The matrices, (n, side, length), that resize `sizes` pixels from `starts` on, out of `length`, to `side`."""
    distinct, which = np.unique(2 * sizes.astype(np.int64) + mirrored, return_inverse=True)
    weights, first = _weights(distinct // 2, distinct % 2 == 1, side, device)
    chosen, starts_there = on_device(which, device), on_device(starts.astype(np.int64), device)
    taps = weights.shape[2]
    places = (first.index_select(0, chosen) + starts_there[:, None])[..., None] + torch.arange(taps, device=device)
    # `taps` columns more than there are pixels, for taps without weight behind the last one.
    matrices = torch.zeros(len(starts), side, length + taps, dtype=torch.float64, device=device)
    return matrices.scatter_(2, places, weights.index_select(0, chosen))[..., :length]


def _weights(
    sizes: NDArray[np.int64], mirrored: NDArray[np.bool_], side: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The weights, (n, side, taps), of the pixels of each result, and the first pixel that has one, int64 (n, side).

    The arithmetic is that of Pillow's precompute_coeffs and normalize_coeffs_8bpc.
    """
    taps = 2 * math.ceil(_SUPPORT * max(1.0, int(sizes.max()) / side)) + 1
    length, is_mirrored = on_device(sizes, device)[:, None], on_device(mirrored, device)[:, None]
    results = torch.arange(side, dtype=torch.float64, device=device)
    results = torch.where(is_mirrored, side - 1 - results, results)
    scale = length.double() / side
    stretch = scale.clamp(min=1.0)
    centers = (results + 0.5) * scale
    first = (centers - _SUPPORT * stretch + 0.5).clamp(min=0.0).long()
    stop = torch.minimum((centers + _SUPPORT * stretch + 0.5).long(), length)
    pixels = first[..., None] + torch.arange(taps, device=device)
    weights = _cubic((pixels - centers[..., None] + 0.5) * (1.0 / stretch)[..., None])
    weights = torch.where(pixels < stop[..., None], weights, 0.0)
    weights = weights / weights.sum(dim=-1, keepdim=True) * _UNIT
    return (weights + torch.copysign(torch.full_like(weights, 0.5), weights)).trunc_().div_(_UNIT), first


def _cubic(distances: Tensor) -> Tensor:
    """The cubic filter with a = -0.5."""
    x = distances.abs()
    near = ((1.5 * x - 2.5) * x) * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
    return torch.where(x < 1.0, near, torch.where(x < 2.0, far, 0.0))


def _to_8_bits(values: Tensor) -> Tensor:
    """Round halves up and clip to 0 ... 255, in place."""
    return values.add_(0.5).floor_().clamp_(0.0, 255.0)


def on_device(array: NDArray, device: torch.device) -> Tensor:
    """The array as a tensor on `device`; a copy to a GPU is in order with torch's current stream."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
