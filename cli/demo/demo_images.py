"""Images for the demo: textured shapes of known typicality, in a folder per texture.

The texture is the class. Shape, place, phase and light vary in every image, independently of the class.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mimcl.pipeline.index import ShardIndex

CLASSES = ("bars", "checks", "diagonal", "dots", "rays", "rings", "stripes", "waves")
SIDE = 96  # pixels
_SHAPES = ("disc", "square", "triangle")
_PERIOD = 24.0  # of the textures, in pixels
_COLOURS = np.array(
    [[0.93, 0.91, 0.86], [0.12, 0.25, 0.45], [0.92, 0.72, 0.35]]
)  # background, dark and light of the shape

Array = NDArray[np.float64]


def write_images(folder: Path, train: int, val: int, seed: int) -> None:
    """Write JPEG files folder/SPLIT/CLASS/NNNN_AA.jpg, equally many per class; AA is the atypicality in percent.

    `train` and `val` are rounded down to multiples of the number of classes. A pure function of the seed.
    """
    for part, (split, count) in enumerate((("train", train), ("val", val))):
        for label, name in enumerate(CLASSES):
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            for number in range(count // len(CLASSES)):
                rng = np.random.default_rng([seed, part, label, number])
                atypical = rng.beta(1.3, 2.6)  # mostly typical, with a tail: median 0.3, one in ten above 0.6
                path = folder / split / name / f"{number:04d}_{round(100 * atypical):02d}.jpg"
                Image.fromarray(draw(name, atypical, rng)).save(path, quality=92)


def atypicality(path: str) -> float:
    """Return the atypicality in an image's name, from 0 (typical) to 1. Raises ValueError for other names."""
    found = re.search(r"\d{4}_(\d{2,3})\.jpg$", path)
    if found is None:
        raise ValueError(f"{path} does not end in NNNN_AA.jpg, with the atypicality in percent; use images of the demo")
    return int(found[1]) / 100


def atypicality_of(index: ShardIndex) -> Array:
    """Return the atypicality of each sample of packed images of the demo (N,)."""
    return np.array([atypicality(index.path(sample_id)) for sample_id in range(index.samples)])


def draw(name: str, atypical: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw one image of a class, (96, 96, 3) uint8.

    `atypical`, from 0 to 1, increases: rotation, stretch, shift, changes of size, period and colours, clouds in the
    background, noise, and a box in front.
    """
    y, x = np.mgrid[0:SIDE, 0:SIDE] - (SIDE - 1) / 2
    colours = (_COLOURS + rng.uniform(-1, 1, (3, 3)) * (0.03 + 0.3 * atypical)).clip(0, 1)
    ground = colours[0] + 0.3 * atypical * _clouds(rng)

    # The shape's own coordinates, in pixels from its centre.
    turn, stretch = atypical * rng.uniform(-0.7, 0.7), 1 + atypical * rng.uniform(-0.3, 0.3)
    shift = rng.uniform(-1, 1, 2) * (5 + 10 * atypical)
    dx, dy = x - shift[0], y - shift[1]
    u, v = (np.cos(turn) * dx + np.sin(turn) * dy) / stretch, (np.cos(turn) * dy - np.sin(turn) * dx) * stretch

    period = _PERIOD * (1 + rng.uniform(-0.05, 0.05) + atypical * rng.uniform(-0.3, 0.3))
    wave = _texture(name, 2 * np.pi * u / period, 2 * np.pi * v / period, rng.uniform(0, 2 * np.pi, 2))
    painted = _blend(colours[2], colours[1], 0.5 + 1.25 * wave)
    radius = 42 * (1 + atypical * rng.uniform(-0.4, 0.2))
    image = _blend(ground, painted, 0.5 + 0.5 * radius * _inside(str(rng.choice(_SHAPES)), u / radius, v / radius))

    if atypical > 0.4:
        left, top = rng.uniform(-48, 22, 2)
        width, height = 45 * atypical * rng.uniform(0.5, 1, 2)
        box = (x > left) & (x < left + width) & (y > top) & (y < top + height)
        image = _blend(image, rng.random(3), box)

    # Light of random strength and direction; camera noise.
    slope = rng.uniform(-0.25, 0.25, 2) / (SIDE / 2)
    image = image * (rng.uniform(0.55, 1) * (1 + slope[0] * x + slope[1] * y))[..., None]
    image = image + rng.normal(0, 0.1 * atypical**2, image.shape)
    return (255 * image.clip(0, 1)).round().astype(np.uint8)


def _blend(below: Array, above: Array, cover: Array) -> Array:
    """Return `above` where `cover` (96, 96) >= 1, `below` where it is <= 0, and a mixture between, for soft edges."""
    share = np.clip(cover, 0, 1)[..., None]
    return below * (1 - share) + above * share


def _texture(name: str, u: Array, v: Array, phase: Array) -> Array:
    """Return a texture from about -1 (light) to 1 (dark); coordinates in radians of the period."""
    if name == "bars":
        return np.sin(v + phase[0])
    if name == "stripes":
        return np.sin(u + phase[0])
    if name == "diagonal":
        return np.sin((u + v) / np.sqrt(2) + phase[0])
    if name == "checks":
        return 2 * np.sin(0.7 * u + phase[0]) * np.sin(0.7 * v + phase[1])
    if name == "dots":
        return np.cos(u + phase[0]) + np.cos(v + phase[1]) - 0.4
    if name == "waves":
        return np.sin(v + phase[0] + 1.6 * np.sin(0.6 * u + phase[1]))
    if name == "rings":
        return np.sin(np.hypot(u, v) + phase[0])
    if name == "rays":
        return np.sin(8 * np.arctan2(v, u) + phase[0])
    raise ValueError(f"unknown texture {name!r}; choose one of {', '.join(CLASSES)}")


def _inside(shape: str, u: Array, v: Array) -> Array:
    """Return the distance from the edge in radii of the shape, positive inside."""
    if shape == "disc":
        return 1 - np.hypot(u, v)
    if shape == "square":
        return 0.88 - np.maximum(abs(u), abs(v))
    return np.minimum(0.8 - v, (v - 1.8 * abs(u) + 1.15) / 2.06)  # triangle


def _clouds(rng: np.random.Generator) -> Array:
    """Return smooth random brightness, (96, 96, 1), from about -1 to 1."""
    coarse = Image.fromarray(rng.normal(0, 0.6, (7, 7)).astype(np.float32))
    return np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.float64)[..., None]
