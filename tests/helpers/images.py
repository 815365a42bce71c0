"""Generated images that compress like photographs, in every format that can be packed, and folders of them."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

ORIENTATION = 0x0112  # the EXIF tag


def picture(seed: int, width: int = 64, height: int = 48) -> Image.Image:
    """Return an RGB image of soft colours with a hard edge and a little noise."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    pixels = np.asarray(coarse, np.int16) + rng.integers(-6, 7, (height, width, 1), np.int16)
    top, left = rng.integers(0, height), rng.integers(0, width)
    pixels[top : top + height // 3, left : left + width // 3] //= 2
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _rotated(image: Image.Image) -> bytes:
    """Return a JPEG with an EXIF orientation and an EXIF thumbnail, itself a complete JPEG."""
    thumbnail = _saved(image.resize((16, 12)), "JPEG")
    # TIFF: header, a directory with the orientation (a short), one with the thumbnail's place and length (longs).
    header = struct.pack("<2sHI", b"II", 42, 8)
    first = struct.pack("<H HHII I", 1, ORIENTATION, 3, 1, 6, 26)
    second = struct.pack("<H HHII HHII I", 2, 0x0201, 4, 1, 56, 0x0202, 4, 1, len(thumbnail), 0)
    return _saved(image, "JPEG", exif=b"Exif\0\0" + header + first + second + thumbnail)


# By kind: (extension by content, encoder).
FORMATS: dict[str, tuple[str, Callable[[Image.Image], bytes]]] = {
    "baseline": ("jpg", lambda image: _saved(image, "JPEG", quality=90)),
    "progressive": ("jpg", lambda image: _saved(image, "JPEG", progressive=True)),
    "grey": ("jpg", lambda image: _saved(image.convert("L"), "JPEG")),
    "cmyk": ("jpg", lambda image: _saved(image.convert("CMYK"), "JPEG")),
    "rotated": ("jpg", _rotated),
    "png": ("png", lambda image: _saved(image, "PNG")),
    "palette": ("png", lambda image: _saved(image.convert("P"), "PNG", transparency=3)),
    "alpha": ("png", lambda image: _saved(image.convert("RGBA"), "PNG")),
    "grey16": ("png", lambda image: _saved(Image.fromarray(np.asarray(image.convert("L"), np.uint16) * 257), "PNG")),
    "webp": ("webp", lambda image: _saved(image, "WEBP")),
    "lossless": ("webp", lambda image: _saved(image, "WEBP", lossless=True)),
}


def encoded(kind: str, seed: int = 0, width: int = 64, height: int = 48) -> bytes:
    """Return the bytes of a generated image stored as `kind`, a key of FORMATS."""
    return FORMATS[kind][1](picture(seed, width, height))


def write_flat(folder: Path, count: int = 11, *, seed: int = 0, width: int = 64, height: int = 48) -> list[Path]:
    """Write `count` images of different sizes, all formats in turn; return their paths sorted by name."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        kind = list(FORMATS)[number % len(FORMATS)]
        path = folder / f"{number:05d}.{FORMATS[kind][0]}"
        path.write_bytes(encoded(kind, seed + number, width + number % 7, height + number % 5))
        paths.append(path)
    return paths


def write_classes(folder: Path, classes: dict[str, int], *, seed: int = 0) -> dict[str, list[Path]]:
    """Write a folder for each class with that many images."""
    return {
        name: write_flat(folder / name, count, seed=seed + 1000 * number)
        for number, (name, count) in enumerate(classes.items())
    }


def write_train_val(folder: Path, train: dict[str, int], val: dict[str, int]) -> None:
    """Write train/ and val/ with class folders."""
    write_classes(folder / "train", train)
    write_classes(folder / "val", val, seed=500_000)
