"""Pillow's limits and warnings, set in every process that opens an image: all of them open it here."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

from PIL import Image, PngImagePlugin

# Of a PNG's texts and colour profile, which Pillow decompresses though nobody reads them: editors and scanners write
# megabytes. Decompression bombs are still refused; the largest image itself takes 534 MB.
PngImagePlugin.MAX_TEXT_CHUNK = 1 << 25  # bytes of one chunk, decompressed
PngImagePlugin.MAX_TEXT_MEMORY = 1 << 27  # bytes of all texts of an image

# Pillow warns at half of its limit of pixels; ours is checked explicitly. It also warns of faults in metadata, which
# nobody reads either, each time an image is opened. Filters are not per thread, so this is global.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


def open_image(source: bytes | memoryview | Path, kind: str | None = None) -> Image.Image:
    """Open the bytes or the file of an image, of Pillow's format `kind` if given; its pixels are not decoded yet.

    Raises Pillow's errors, of many types.
    """
    file = source if isinstance(source, Path) else io.BytesIO(source)
    return Image.open(file, formats=[kind] if kind else None)
