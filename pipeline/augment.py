"""The random crops and flips of draws: pure functions of (seed, draw), vectorised over draws.

The source of randomness is a hash, not a generator: splitmix64 (Steele, Lea, Flood 2014) of (seed, draw, stream
number). So draw g looks the same on every rank and after any other draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Stream numbers make the random numbers of one draw independent. `mimcl.curriculum.plan` uses those from 16 on.
STREAM_CROP = 1
STREAM_FLIP = 2
STREAM_MASK = 3
STREAM_RAND_AUGMENT = 4
STREAM_ERASING = 5
STREAM_MIXING = 6
STREAM_DROP_PATH = 7
STREAM_NOISE = 8
STREAM_VIEW = 9
STREAM_TRANSFORM = 10
STREAM_SAMPLE = 11

_ATTEMPTS = 10  # boxes tried before falling back to the central one, as in torchvision
EVALUATION_SIDE = 0.875  # of the shorter side: resize 256, crop 224


def mix64(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """One splitmix64 output per element: add the golden gamma, then Stafford's mix 13."""
    z = x + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def hash64(seed: int, draws: ArrayLike, stream: int) -> NDArray[np.uint64]:
    """64 random bits per draw, mix(mix(mix(seed) ^ draw) ^ stream), in the shape of `draws` (at least 1-d)."""
    numbers = np.atleast_1d(np.asarray(draws)).astype(np.uint64)
    start = mix64(np.array([seed & 0xFFFFFFFFFFFFFFFF], np.uint64))
    return mix64(mix64(start ^ numbers) ^ np.uint64(stream))


def uniforms(hashes: NDArray[np.uint64], count: int) -> NDArray[np.float64]:
    """`count` independent numbers in [0, 1) per hash, shape (len(hashes), count), 53 random bits each."""
    words = mix64(hashes[:, None] ^ np.arange(count, dtype=np.uint64))
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def crop_boxes(
    hashes: NDArray[np.uint64],
    width: NDArray[np.integer],
    height: NDArray[np.integer],
    scale: tuple[float, float] = (0.2, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> NDArray[np.int32]:
    """RandomResizedCrop boxes with torchvision's distribution, one per hash.

    `hashes`, `width` and `height` have shape (n,), with sizes in pixels of the stored orientation; `scale` is the range
    of the box's fraction of the area, `ratio` that of its aspect ratio (width / height, log-uniform). Returns (n, 4)
    int32 rows of left, top, width, height, always inside the image.
    """
    width, height = np.asarray(width, np.float64), np.asarray(height, np.float64)
    draw = uniforms(hashes, 2 * _ATTEMPTS + 2)
    area = (width * height)[:, None] * (scale[0] + (scale[1] - scale[0]) * draw[:, :_ATTEMPTS])
    log_low, log_high = math.log(ratio[0]), math.log(ratio[1])
    aspect = np.exp(log_low + (log_high - log_low) * draw[:, _ATTEMPTS : 2 * _ATTEMPTS])
    widths, heights = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = (widths > 0) & (widths <= width[:, None]) & (heights > 0) & (heights <= height[:, None])
    rows, first = np.arange(len(width)), fits.argmax(axis=1)
    w, h = widths[rows, first], heights[rows, first]
    left, top = np.floor(draw[:, -2] * (width - w + 1)), np.floor(draw[:, -1] * (height - h + 1))

    # No attempt fits: the largest central box with an aspect ratio in the range.
    none = ~fits.any(axis=1)
    w = np.where(none, np.minimum(width, np.rint(height * ratio[1])), w)
    h = np.where(none, np.minimum(height, np.rint(width / ratio[0])), h)
    left = np.where(none, (width - w) // 2, left)
    top = np.where(none, (height - h) // 2, top)
    return np.stack([left, top, w, h], axis=1).astype(np.int32)


def flips(hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Whether to mirror the crop left to right, a fair coin per hash."""
    return (hashes >> np.uint64(63)).astype(bool)


def evaluation_boxes(width: NDArray[np.integer], height: NDArray[np.integer]) -> NDArray[np.int32]:
    """The central square of side 0.875 min(width, height), at least 1 pixel, as rows of left, top, width, height."""
    width, height = np.asarray(width, np.int64), np.asarray(height, np.int64)
    side = np.maximum(np.rint(EVALUATION_SIDE * np.minimum(width, height)).astype(np.int64), 1)
    return np.stack([(width - side) // 2, (height - side) // 2, side, side], axis=1).astype(np.int32)


# The crops of a stream's n draws: (draws, width, height) -> (boxes, flips), n rows of each, or n for each of the views.
Transform = Callable[
    [NDArray[np.int64], NDArray[np.integer], NDArray[np.integer]], tuple[NDArray[np.int32], NDArray[np.bool_]]
]


def random_crops(seed: int, scale: tuple[float, float] = (0.2, 1.0)) -> Transform:
    """MAE's augmentation for training: a random resized crop and a random flip of each draw.

    `scale` is the range of the crop's fraction of the area; MAE fine-tunes with (0.08, 1).
    """

    def transform(
        draws: NDArray[np.int64], width: NDArray[np.integer], height: NDArray[np.integer]
    ) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        boxes = crop_boxes(hash64(seed, draws, STREAM_CROP), width, height, scale)
        return boxes, flips(hash64(seed, draws, STREAM_FLIP))

    return transform


def view_seed(seed: int, view: int) -> int:
    """The seed of a draw's view 0, 1, ...; that of view 0 is `seed` itself."""
    return int(hash64(seed, view, STREAM_VIEW)[0]) if view else seed


def random_views(seed: int, views: int, scale: tuple[float, float] = (0.2, 1.0)) -> Transform:
    """Several independent crops of each draw, `random_crops` of the views' seeds: all of view 0, all of view 1, ..."""
    crops = [random_crops(view_seed(seed, view), scale) for view in range(views)]

    def transform(
        draws: NDArray[np.int64], width: NDArray[np.integer], height: NDArray[np.integer]
    ) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        boxes, flips = zip(*(crop(draws, width, height) for crop in crops), strict=True)
        return np.concatenate(boxes), np.concatenate(flips)

    return transform


def central_crops(
    draws: NDArray[np.int64], width: NDArray[np.integer], height: NDArray[np.integer]
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """The Transform for evaluation: the central square, never flipped."""
    return evaluation_boxes(width, height), np.zeros(len(draws), bool)
