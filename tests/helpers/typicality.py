"""Generated images of known typicality: corrupted copies of one textured shape per family."""

from __future__ import annotations

import numpy as np
from PIL import Image


def stripes(rng: np.random.Generator, side: int = 64) -> np.ndarray:
    """Return stripes of random direction, colours and period (6 to 20 pixels), float (side, side, 3) in [0, 1]."""
    y, x = np.mgrid[0:side, 0:side]
    angle, period, phase = rng.uniform(0, np.pi), rng.uniform(6, 20), rng.uniform(0, 2 * np.pi)
    wave = np.sin(2 * np.pi / period * (x * np.cos(angle) + y * np.sin(angle)) + phase)
    return np.where(wave[..., None] > 0, rng.uniform(0.6, 1, 3), rng.uniform(0, 0.4, 3))


def family(seed: int, side: int = 64) -> np.ndarray:
    """Return the ideal image of a family: a striped shape on a striped background, float (side, side, 3) in [0, 1]."""
    rng = np.random.default_rng([seed, 7])
    y, x = np.mgrid[0:side, 0:side] / side - 0.5
    power, radius = rng.choice([1.0, 2.0, 8.0]), rng.uniform(0.25, 0.4)  # a diamond, a disc or a square
    inside = np.abs(x) ** power + np.abs(y) ** power < radius**power
    return np.where(inside[..., None], stripes(rng, side), stripes(rng, side))


def corrupted(ideal: np.ndarray, corruption: float, rng: np.random.Generator) -> np.ndarray:
    """Return `ideal`, uint8, with noise and up to half of its 8 x 8 blocks (at `corruption` 1) replaced by stripes.

    The stripes differ between blocks: images with the same corruption would form a family.
    """
    side = len(ideal)
    image = ideal + rng.normal(0, 0.02, ideal.shape)
    blocks = rng.permutation((side // 8) ** 2)[: round(corruption / 2 * (side // 8) ** 2)]
    for row, column in zip(*np.divmod(blocks, side // 8), strict=True):
        image[8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = stripes(rng, 8)
    return np.rint(255 * image.clip(0, 1)).astype(np.uint8)


def collection(seed: int, families: int, each: int) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Return images (64, 64, 3) uint8 of all families, their family numbers, and their corruption in [0, 1]."""
    rng = np.random.default_rng([seed, 11])
    labels = np.repeat(np.arange(families), each)
    corruption = rng.uniform(0, 1, len(labels))
    ideals = [family(1000 * seed + number) for number in range(families)]
    images = [corrupted(ideals[label], share, rng) for label, share in zip(labels, corruption, strict=True)]
    return images, labels, corruption


def resized(images: list[np.ndarray], side: int) -> np.ndarray:
    """Resize images to one uint8 array (n, 3, side, side), as extractors expect."""
    shrunk = [np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)) for image in images]
    return np.ascontiguousarray(np.stack(shrunk).transpose(0, 3, 1, 2))


def blobs(seed, groups=6, each=80, width=12, spread=0.3):
    """Return clusters of Gaussian points, float32 (groups * each, width), and their cluster numbers."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(groups), each)
    points = rng.normal(0, 1, (groups, width))[labels] + rng.normal(0, spread, (len(labels), width))
    return points.astype(np.float32), labels
