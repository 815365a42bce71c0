"""Which images DALI decodes, by their headers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mimcl.pipeline.examine import MAX_PIXELS, extension_of


def dali_can_decode(data: NDArray[np.uint8], max_pixels: int = MAX_PIXELS) -> bool:
    """Whether DALI decodes this image to the same pixels as Pillow and its header claims at most `max_pixels`.

    Reads the header only, in microseconds. DALI reserves memory for the pixels that a header claims, whatever the file
    holds; Pillow refuses more than MAX_PIXELS.
    """
    head = data.data
    reader = _CLAIMED_PIXELS.get(extension_of(head) or "")
    if reader is None:
        return True
    pixels = reader(head)
    return pixels is not None and pixels <= max_pixels


def jpeg_channels(data: NDArray[np.uint8]) -> int | None:
    """The number of colour channels that a JPEG's header claims; None if it is incomplete."""
    frame = _jpeg_frame(data.data)
    return frame and data.data[frame[1] + 7]


def _jpeg_frame(head: memoryview) -> tuple[int, int] | None:
    """The code of a JPEG's frame marker (0xC0: baseline) and the offset of its segment; None if there is none."""
    position = 2
    while position + 9 < len(head) and head[position] == 0xFF:
        code = head[position + 1]
        if 0xC0 <= code <= 0xCF and code not in (0xC4, 0xC8, 0xCC):
            return code, position + 2
        position += 1 if code == 0xFF else 2 + _big_endian(head[position + 2 : position + 4])
    return None


# The number of pixels that a header claims; None if the header is incomplete, or if DALI and Pillow decode this kind of
# image differently.


def _jpeg_pixels(head: memoryview) -> int | None:
    frame = _jpeg_frame(head)
    if frame is None:
        return None
    start = frame[1]
    # CMYK: DALI and Pillow agree on the polarity only if Adobe's marker gives it.
    if head[start + 7] == 4:
        return None
    return _big_endian(head[start + 3 : start + 5]) * _big_endian(head[start + 5 : start + 7])


def _png_pixels(head: memoryview) -> int | None:
    # Of 16-bit colours Pillow takes the upper byte, DALI the nearest. Black and white overshoots so far under bicubic
    # interpolation that it matters between which passes values are clipped.
    if len(head) < 26:
        return None
    depth, colour = head[24], head[25]
    agrees = depth != 1 and (depth != 16 or colour == 0)
    return _big_endian(head[16:20]) * _big_endian(head[20:24]) if agrees else None


def _webp_pixels(head: memoryview) -> int:
    kind = bytes(head[12:16])
    if kind == b"VP8X":  # of the canvas, which holds every frame
        width, height = _little_endian(head[24:27]) + 1, _little_endian(head[27:30]) + 1
    elif kind == b"VP8L":
        sizes = _little_endian(head[21:25])
        width, height = (sizes & 0x3FFF) + 1, (sizes >> 14 & 0x3FFF) + 1
    else:
        width, height = _little_endian(head[26:28]) & 0x3FFF, _little_endian(head[28:30]) & 0x3FFF
    return width * height


_CLAIMED_PIXELS = {"jpg": _jpeg_pixels, "png": _png_pixels, "webp": _webp_pixels}


def _big_endian(part: memoryview) -> int:
    return int.from_bytes(part, "big")


def _little_endian(part: memoryview) -> int:
    return int.from_bytes(part, "little")
