"""What fine-tuning does to normalised images and to labels: random erasing, mixup, cutmix, label smoothing.

Nothing here draws: random numbers come in, a row an image or a group, so that it is the caller who makes them pure
functions of the draw.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_ATTEMPTS = 10  # at a box that fits
_AREA, _ASPECT = (0.02, 1 / 3), (0.3, 1 / 0.3)  # of an erased box: its share of the image, its height over its width
ERASING_NUMBERS = 2 * _ATTEMPTS + 3
MIXING_NUMBERS = 5

Mix64 = Callable[[Tensor], Tensor]  # one splitmix64 output per element of an int64 tensor


def erasing_boxes(numbers: NDArray[np.float64], side: int, probability: float) -> NDArray[np.int64]:
    """Rows of top, left, height, width (n, 4) out of numbers in [0, 1) (n, 23), of no size where nothing is erased.

    Random erasing (Zhong et al. 2020, arXiv 1708.04896) with timm's distribution: areas are uniform, aspects
    log-uniform, and the first of ten boxes that is smaller than the image in both directions is taken.
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
    """Puts standard normal noise, another value at each pixel and colour, where the boxes (n, 4) are, in place.

    `images` are normalised, float (n, 3, S, S); an image's noise is a pure function of its key of `keys` (n,).
    """
    places = np.flatnonzero(boxes[:, 2])
    if not len(places):
        return
    device, side = images.device, images.shape[-1]
    which = sent(places, device)
    top, left, height, width = sent(boxes[places].T.copy(), device)[:, :, None, None]
    row, column = torch.arange(side, device=device)[:, None], torch.arange(side, device=device)
    inside = (row >= top) & (row < top + height) & (column >= left) & (column < left + width)
    noise = normals(sent(keys[places].view(np.int64), device), images[0].numel(), mix64).view(-1, *images.shape[1:])
    images[which] = torch.where(inside[:, None], noise, images[which])


def normals(keys: Tensor, count: int, mix64: Mix64) -> Tensor:
    """`count` standard normal numbers for each key, int64 (n,): float32 (n, count).

    Pairs by Box and Muller (1958) from the halves of splitmix64 words.
    """
    words = mix64(keys[:, None] ^ torch.arange((count + 1) // 2, device=keys.device))
    high, low = (words >> 32) & 0xFFFFFFFF, words & 0xFFFFFFFF
    radius = torch.sqrt(-2 * torch.log((high.double() + 1) * 2.0**-32))
    angle = low.double() * (2 * math.pi * 2.0**-32)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=2).flatten(1)[:, :count].float()


def mixing_weights(
    numbers: NDArray[np.float64], keys: NDArray[np.uint64], side: int, mixup: float, cutmix: float, switch: float
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """For groups of images: the share of itself that an image keeps (k,), and cutmix boxes (k, 4) as in `erase`.

    Mixup (Zhang et al. 2018, arXiv 1710.09412) mixes all pixels, its share from Beta(mixup, mixup); cutmix (Yun et al.
    2019, arXiv 1905.04899) puts a box of 1 - Beta(cutmix, cutmix) of the area in, cut at the border, and the share is
    what is left. With both a group gets cutmix with probability `switch`; 0 means never. A group's share follows from
    its key of `keys` (k,), all else from its numbers in [0, 1) (k, 5).
    """
    kinds = np.where(numbers[:, 0] < switch, cutmix, mixup) if mixup and cutmix else np.full(len(keys), mixup or cutmix)
    cut = numbers[:, 0] < switch if mixup and cutmix else np.full(len(keys), not mixup)
    if not (mixup or cutmix):
        return np.ones(len(keys)), np.zeros((len(keys), 4), np.int64)
    pairs = zip(keys.tolist(), kinds.tolist(), strict=True)
    share = np.array([np.random.Generator(np.random.PCG64(key)).beta(alpha, alpha) for key, alpha in pairs])
    size = np.where(cut, np.floor(side * np.sqrt(1 - share)), 0).astype(np.int64)
    centre = (numbers[:, 1:3] * side).astype(np.int64)
    first = np.clip(centre - size[:, None] // 2, 0, side)
    last = np.clip(centre + (size[:, None] + 1) // 2, 0, side)
    boxes = np.where(cut[:, None], np.concatenate([first, last - first], axis=1), 0)
    share = np.where(cut, 1 - boxes[:, 2] * boxes[:, 3] / side**2, share)
    return share, boxes


def mix(images: Tensor, targets: Tensor, share: NDArray[np.float64], boxes: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """Mixes each image (n, 3, S, S) and its target (n, C) with that of its partner: the last of a group with the first.

    `share` (k,) and `boxes` (k, 4) are those of `mixing_weights`, n / k images a group.
    """
    groups, side, device = len(share), images.shape[-1], images.device
    kept = sent(share.astype(np.float32), device).view(groups, 1, 1)
    top, left, height, width = sent(boxes.T.copy(), device)[:, :, None, None]
    row, column = torch.arange(side, device=device)[:, None], torch.arange(side, device=device)
    inside = (row >= top) & (row < top + height) & (column >= left) & (column < left + width)
    weights = torch.where((height > 0) & (width > 0), (~inside).float(), kept)[:, None, None]
    images, targets = (both.view(groups, -1, *both.shape[1:]) for both in (images, targets))
    mixed = torch.lerp(images.flip(1), images, weights)
    return mixed.flatten(0, 1), torch.lerp(targets.flip(1), targets, kept).flatten(0, 1)


def smoothed(labels: Tensor, classes: int, smoothing: float) -> Tensor:
    """Labels (n,) as probabilities, float32 (n, C): 1 - smoothing for the own class, the rest for all alike."""
    targets = torch.full((len(labels), classes), smoothing / classes, device=labels.device)
    return targets.scatter_add_(1, labels[:, None], torch.full((len(labels), 1), 1 - smoothing, device=labels.device))


def sent(array: NDArray, device: torch.device) -> Tensor:
    """The array on the device, without waiting for it."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
