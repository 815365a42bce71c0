"""Conversion of every kind of image to 8-bit RGB."""

from __future__ import annotations

import numpy as np
from PIL import Image


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert to three 8-bit channels: grey is repeated, alpha dropped, 16-bit grey divided by 257 (not clipped)."""
    if image.mode.startswith("I"):
        image = Image.fromarray(np.rint(np.asarray(image, np.float64) / 257).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the same colours; Pillow warns about direct conversion
    return image.convert("RGB")
