"""Which images are not for DALI, by their headers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mimcl.pipeline.examine import MAX_PIXELS, extension_of


def is_for_dali(data: NDArray[np.uint8], most_pixels: int = MAX_PIXELS) -> bool:
    """Whether DALI decodes this image; by the header, in microseconds.

    It does where its pixels are Pillow's and the header claims at most `most_pixels`. Pillow refuses more than
    MAX_PIXELS, and DALI would reserve memory for them, whatever the bytes hold.
    """
    head = memoryview(data)
    reader = _HEADERS.get(extension_of(head))
    if reader is None:
        return True
    pixels = reader(head)
    return pixels is not None and pixels <= most_pixels


# The readers return the pixels that a header claims; None where it is incomplete, and for a kind of image that DALI
# decodes differently from Pillow.


def _png(head: memoryview) -> int | None:
    # Of 16-bit colours Pillow takes the upper byte, DALI the nearest. Black and white overshoots so far under bicubic
    # that it matters between which passes values are clipped.
    if len(head) < 26:
        return None
    depth, colour = head[24], head[25]
    agrees = depth != 1 and (depth != 16 or colour == 0)
    return big_endian(head[16:20]) * big_endian(head[20:24]) if agrees else None


def frame_header(head: memoryview) -> tuple[int, int] | None:
    """The code of a JPEG's frame marker (0xC0: baseline) and where its segment begins, None where there is none."""
    position = 2
    while position + 9 < len(head) and head[position] == 0xFF:
        code = head[position + 1]
        if 0xC0 <= code <= 0xCF and code not in (0xC4, 0xC8, 0xCC):
            return code, position + 2
        position += 1 if code == 0xFF else 2 + big_endian(head[position + 2 : position + 4])
    return None


def _jpeg(head: memoryview) -> int | None:
    frame = frame_header(head)
    if frame is None:
        return None
    start = frame[1]
    # CMYK: which way up it is, they agree on only where Adobe's marker says it.
    if head[start + 7] == 4:
        return None
    return big_endian(head[start + 3 : start + 5]) * big_endian(head[start + 5 : start + 7])


def _webp(head: memoryview) -> int:
    kind = bytes(head[12:16])
    if kind == b"VP8X":  # of the canvas, which holds every frame
        width, height = _little(head[24:27]) + 1, _little(head[27:30]) + 1
    elif kind == b"VP8L":
        sizes = _little(head[21:25])
        width, height = (sizes & 0x3FFF) + 1, (sizes >> 14 & 0x3FFF) + 1
    else:
        width, height = _little(head[26:28]) & 0x3FFF, _little(head[28:30]) & 0x3FFF
    return width * height


def big_endian(part: memoryview) -> int:
    """An unsigned number, its highest byte first."""
    return int.from_bytes(part, "big")


def _little(part: memoryview) -> int:
    return int.from_bytes(part, "little")


_HEADERS = {"jpg": _jpeg, "png": _png, "webp": _webp}
