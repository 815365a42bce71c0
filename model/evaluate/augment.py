"""Augmentation of normalised images and labels for fine-tuning: random erasing, mixup, cutmix, label smoothing.

The caller passes in the random numbers, a row for each image or group, so that they can be pure functions of the draw.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_ATTEMPTS = 10  # to find a box that fits
_AREA, _ASPECT = (0.02, 1 / 3), (0.3, 1 / 0.3)  # ranges of an erased box: share of the image area, height / width
ERASING_NUMBERS = 2 * _ATTEMPTS + 3
MIXING_NUMBERS = 5

Mix64 = Callable[[Tensor], Tensor]  # splitmix64 of each element of an int64 tensor


def erasing_boxes(numbers: NDArray[np.float64], side: int, probability: float) -> NDArray[np.int64]:
    """Choose boxes to erase, rows (top, left, height, width) (n, 4); height and width are 0 where none is erased.

    Random erasing (Zhong et al. 2020, arXiv 1708.04896) with timm's distribution: uniform area, log-uniform aspect
    ratio, the first of ten boxes that fits into the image. `numbers` are uniform in [0, 1), (n, 23).
    """
    area = side * side * (_AREA[0] + (_AREA[1] - _AREA[0]) * numbers[:, :_ATTEMPTS])
    low, high = map(math.log, _ASPECT)
    aspect = np.exp(low + (high - low) * numbers[:, _ATTEMPTS : 2 * _ATTEMPTS])
    heights, widths = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = (heights < side) & (widths < side)
    rows, first = np.arange(len(numbers)), fits.argmax(axis=1)
    erased = fits.any(axis=1) & (numbers[:, -3] < probability)
    height, width = (np.where(erased, sizes[rows, first], 0) for sizes in (heights, widths))
    top, left = (np.floor(numbers[:, -k] * (side - size + 1)) for k, size in ((2, height), (1, width)))
    return np.stack([top, left, height, width], axis=1).astype(np.int64)


def erase(images: Tensor, boxes: NDArray[np.int64], keys: NDArray[np.uint64], mix64: Mix64) -> None:
    """Fill the boxes (n, 4) in place with standard normal noise, independent for each pixel and channel.

    `images` are normalised, float (n, 3, S, S); the noise of an image depends on its key in `keys` (n,) alone.
    """
    erased = np.flatnonzero(boxes[:, 2])
    if not len(erased):
        return
    device = images.device
    rows = to_device(erased, device)
    inside = _inside(boxes[erased], images.shape[-1], device)[:, None]
    noise = normals(to_device(keys[erased].view(np.int64), device), images[0].numel(), mix64)
    images[rows] = torch.where(inside, noise.view(-1, *images.shape[1:]), images[rows])


def normals(keys: Tensor, count: int, mix64: Mix64) -> Tensor:
    """Generate `count` standard normal numbers for each key, int64 (n,): float32 (n, count).

    By the Box-Muller transform of the upper and lower halves of splitmix64 outputs.
    """
    words = mix64(keys[:, None] ^ torch.arange((count + 1) // 2, device=keys.device))
    high, low = (words >> 32) & 0xFFFFFFFF, words & 0xFFFFFFFF
    radius = torch.sqrt(-2 * torch.log((high.double() + 1) * 2.0**-32))
    angle = low.double() * (2 * math.pi * 2.0**-32)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=2).flatten(1)[:, :count].float()


def mixing_weights(
    numbers: NDArray[np.float64], keys: NDArray[np.uint64], side: int, mixup: float, cutmix: float, switch: float
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Choose for each group of images the weight of the image itself (k,), and cutmix boxes (k, 4) as in `erase`.

    Mixup (Zhang et al. 2018, arXiv 1710.09412) blends all pixels with a weight from Beta(mixup, mixup). Cutmix (Yun et
    al. 2019, arXiv 1905.04899) pastes a box of 1 - Beta(cutmix, cutmix) of the area, clipped at the border, and the
    weight is the area outside it. A parameter of 0 disables either; if both are enabled, a group gets cutmix with
    probability `switch`. The Beta variates depend on `keys` (k,), all else on uniform `numbers` in [0, 1) (k, 5).
    """
    if not (mixup or cutmix):
        return np.ones(len(keys)), np.zeros((len(keys), 4), np.int64)
    cut = numbers[:, 0] < switch if mixup and cutmix else np.full(len(keys), not mixup)
    pairs = zip(keys.tolist(), np.where(cut, cutmix, mixup).tolist(), strict=True)
    share = np.array([np.random.Generator(np.random.PCG64(key)).beta(alpha, alpha) for key, alpha in pairs])
    size = np.where(cut, np.floor(side * np.sqrt(1 - share)), 0).astype(np.int64)
    centre = (numbers[:, 1:3] * side).astype(np.int64)
    first = np.clip(centre - size[:, None] // 2, 0, side)
    last = np.clip(centre + (size[:, None] + 1) // 2, 0, side)
    boxes = np.where(cut[:, None], np.concatenate([first, last - first], axis=1), 0)
    share = np.where(cut, 1 - boxes[:, 2] * boxes[:, 3] / side**2, share)
    return share, boxes


def mix(images: Tensor, targets: Tensor, share: NDArray[np.float64], boxes: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """Mix each image (n, 3, S, S) and target (n, C) with its partner: the first of a group with the last, and so on.

    `share` (k,) and `boxes` (k, 4) come from `mixing_weights`; a group has n / k images.
    """
    groups, device = len(share), images.device
    kept = to_device(share.astype(np.float32), device).view(groups, 1, 1)
    inside = _inside(boxes, images.shape[-1], device)
    weights = torch.where(inside.any(dim=(1, 2), keepdim=True), (~inside).float(), kept)[:, None, None]
    images, targets = (both.view(groups, -1, *both.shape[1:]) for both in (images, targets))
    mixed = torch.lerp(images.flip(1), images, weights)
    return mixed.flatten(0, 1), torch.lerp(targets.flip(1), targets, kept).flatten(0, 1)


def _inside(boxes: NDArray[np.int64], side: int, device: torch.device) -> Tensor:
    """Masks, bool (n, S, S), of the pixels inside the boxes (n, 4)."""
    top, left, height, width = to_device(boxes.T.copy(), device)[:, :, None, None]
    row, column = torch.arange(side, device=device)[:, None], torch.arange(side, device=device)
    return (row >= top) & (row < top + height) & (column >= left) & (column < left + width)


def smooth_labels(labels: Tensor, classes: int, smoothing: float) -> Tensor:
    """Convert labels (n,) to probabilities, float32 (n, C), with `smoothing` spread evenly over all classes."""
    targets = torch.full((len(labels), classes), smoothing / classes, device=labels.device)
    return targets.scatter_add_(1, labels[:, None], torch.full((len(labels), 1), 1 - smoothing, device=labels.device))


def to_device(array: NDArray, device: torch.device) -> Tensor:
    """Copy the array to the device asynchronously."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
