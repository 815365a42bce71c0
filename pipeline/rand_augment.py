"""RandAugment (Cubuk et al. 2020, arXiv 1909.13719) in timm's increasing variant, as MAE fine-tunes with it.

Each image gets two of 15 operations, each with probability 0.5, at a magnitude around 9 of 10. The choices are pure
functions of (seed, draw); torchvision changes uint8 images on their device, in one call for all images of a batch that
get the same operation at the same level.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as v2

from mimcl.pipeline.augment import STREAM_RAND_AUGMENT, hash64, uniforms

_LAYERS, _PROBABILITY = 2, 0.5
_HALF_LEVELS = 20  # magnitudes 0, 0.5, ... 10; with finer ones hardly two images would share a call
_FILL = [124.0, 116.0, 104.0]  # ImageNet's mean, for pixels from outside the image
_BILINEAR = InterpolationMode.BILINEAR  # torchvision has no bicubic for tensors


def _enhanced(adjust: Callable[[Tensor, float], Tensor]) -> Callable[[Tensor, float], Tensor]:
    return lambda images, level: adjust(images, max(0.1, 1 + 0.09 * level))


def _posterize(images: Tensor, level: float) -> Tensor:
    return v2.posterize(images, 4 - int(0.4 * abs(level)))


def _solarize(images: Tensor, level: float) -> Tensor:
    threshold = 256 - int(25.6 * abs(level))
    return images if threshold > 255 else v2.solarize(images, threshold)


def _solarize_add(images: Tensor, level: float) -> Tensor:
    return torch.where(images < 128, images + int(11 * abs(level)), images)


def _rotate(images: Tensor, level: float) -> Tensor:
    return v2.rotate(images, 3 * level, _BILINEAR, fill=_FILL)


def _moved(images: Tensor, shear: tuple[float, float] = (0, 0), shift: tuple[float, float] = (0, 0)) -> Tensor:
    """Shear about the top left corner by factors, and shift by pixels, along x and y."""
    degrees = [math.degrees(math.atan(factor)) for factor in shear]
    return v2.affine(images, 0.0, list(shift), 1.0, degrees, _BILINEAR, fill=_FILL, center=[0, 0])


# By name, functions of (images (n, 3, H, W) uint8, level from -10 to 10, whose sign is the direction).
OPERATIONS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "AutoContrast": lambda images, _: v2.autocontrast(images),
    "Equalize": lambda images, _: v2.equalize(images),
    "Invert": lambda images, _: v2.invert(images),
    "Rotate": _rotate,  # up to 30 degrees
    "Posterize": _posterize,  # down to 0 bits
    "Solarize": _solarize,
    "SolarizeAdd": _solarize_add,
    "Color": _enhanced(v2.adjust_saturation),
    "Contrast": _enhanced(v2.adjust_contrast),
    "Brightness": _enhanced(v2.adjust_brightness),
    "Sharpness": _enhanced(v2.adjust_sharpness),
    "ShearX": lambda images, level: _moved(images, shear=(0.03 * level, 0)),
    "ShearY": lambda images, level: _moved(images, shear=(0, 0.03 * level)),
    "TranslateX": lambda images, level: _moved(images, shift=(0.045 * level * images.shape[-1], 0)),
    "TranslateY": lambda images, level: _moved(images, shift=(0, 0.045 * level * images.shape[-2])),
}
_FUNCTIONS = list(OPERATIONS.values())
_WITHOUT_LEVEL = [list(OPERATIONS).index(name) for name in ("AutoContrast", "Equalize", "Invert")]
_WITHOUT_SIGN = [*_WITHOUT_LEVEL, *(list(OPERATIONS).index(n) for n in ("Posterize", "Solarize", "SolarizeAdd"))]


def choices(
    seed: int, draws: NDArray[np.int64], magnitude: float, deviation: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Choose for draws (n,), layer by layer, operations (2, n), -1 for none, and levels (2, n) from -10 to 10.

    The magnitude is normally distributed, rounded to halves and clipped to [0, 10]. The level is 0 for operations
    without one, and not negative for those without a direction.
    """
    numbers = uniforms(hash64(seed, draws, STREAM_RAND_AUGMENT), 5 * _LAYERS).reshape(len(draws), _LAYERS, 5)
    pick, use, radius, angle, sign = numbers.transpose(2, 1, 0)
    operations = np.where(use < _PROBABILITY, (pick * len(_FUNCTIONS)).astype(np.int64), -1)
    normal = np.sqrt(-2 * np.log1p(-radius)) * np.cos(2 * math.pi * angle)  # Box, Muller 1958
    levels = np.rint(2 * np.clip(magnitude + deviation * normal, 0, _HALF_LEVELS / 2)) / 2
    levels = np.where((sign < 0.5) & ~np.isin(operations, _WITHOUT_SIGN), -levels, levels)
    return operations, np.where(np.isin(operations, [-1, *_WITHOUT_LEVEL]), 0.0, levels)


def rand_augment(images: Tensor, draws: NDArray[np.int64], seed: int, magnitude: float, deviation: float) -> Tensor:
    """Augment the uint8 images (n, 3, H, W) of draws (n,) according to `choices`; returns new images."""
    for operations, levels in zip(*choices(seed, draws, magnitude, deviation), strict=True):
        # Sort, so that images that share a call are adjacent.
        order = np.lexsort((levels, operations))
        operations, levels = operations[order], levels[order]
        images = images[torch.from_numpy(order).to(images.device)]
        ends = np.flatnonzero((np.diff(operations) != 0) | (np.diff(levels) != 0)) + 1
        for start, stop in zip([0, *ends], [*ends, len(order)], strict=True):
            if operations[start] >= 0:
                part = images[start:stop]
                part.copy_(_FUNCTIONS[operations[start]](part, float(levels[start])))
        images = images[torch.from_numpy(np.argsort(order)).to(images.device)]
    return images
