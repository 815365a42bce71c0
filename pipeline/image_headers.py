"""What a file's header says about who decodes it: DALI, and the JPEG engine of a GPU."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mimcl.pipeline.examine import MAX_PIXELS, extension_of

# NVIDIA documents no size limit for the JPEG engine; a quarter of what the format allows, to report huge images.
MAX_ENGINE_SIDE = 16_384  # pixels
_BASELINE, _EXTENDED, _PROGRESSIVE, _SCAN = 0xC0, 0xC1, 0xC2, 0xDA
_ARITHMETIC = range(0xC9, 0xD0)
# Sampling factors (horizontal, vertical) of luminance relative to chrominance.
_UNUSUAL_CHROMA: dict[tuple[float, float], str] = {(4, 1): "4:1:1 chroma", (4, 2): "4:1:0 chroma"}


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


def jpeg_engine_refusal(data: NDArray[np.uint8]) -> str | None:
    """Why a GPU's JPEG engine does not take an image, in a word or two; None if it does.

    Source: nvJPEG's documentation (13.2, NVJPEG_BACKEND_HARDWARE): baseline JPEG, a single scan, 1 or 3 channels,
    chroma neither 4:1:1 nor 4:1:0.
    """
    head = data.data
    extension = extension_of(head)
    if extension != "jpg":
        return f"no JPEG but {extension}" if extension else "no JPEG"
    frame = _jpeg_frame(head)
    if frame is None:
        return "unreadable header"
    code, start = frame
    if code == _PROGRESSIVE:
        return "progressive"
    if code in _ARITHMETIC:
        return "arithmetic coding"
    if code != _BASELINE:
        return "extended sequential" if code == _EXTENDED else "lossless or hierarchical"
    channels = head[start + 7]
    if len(head) < start + 8 + 3 * channels:
        return "unreadable header"
    if channels not in (1, 3):
        return "CMYK" if channels == 4 else f"{channels} channels"
    if channels == 3:
        luminance, chrominance = (divmod(head[start + 9 + 3 * channel], 16) for channel in (0, 1))
        if 0 in chrominance:
            return "unreadable header"
        chroma = luminance[0] / chrominance[0], luminance[1] / chrominance[1]
        if name := _UNUSUAL_CHROMA.get(chroma):
            return name
    if max(_big_endian(head[start + 3 : start + 5]), _big_endian(head[start + 5 : start + 7])) > MAX_ENGINE_SIDE:
        return "huge"
    return None if _channels_of_first_scan(head, start) == channels else "several scans"


def _jpeg_frame(head: memoryview) -> tuple[int, int] | None:
    """The code of a JPEG's frame marker (0xC0: baseline) and the offset of its segment; None if there is none."""
    position = 2
    while position + 9 < len(head) and head[position] == 0xFF:
        code = head[position + 1]
        if 0xC0 <= code <= 0xCF and code not in (0xC4, 0xC8, 0xCC):
            return code, position + 2
        position += 1 if code == 0xFF else 2 + _big_endian(head[position + 2 : position + 4])
    return None


def _channels_of_first_scan(head: memoryview, start: int) -> int:
    """The number of channels in the first scan after the frame segment at `start`; 0 if there is none."""
    position = start + _big_endian(head[start : start + 2])
    while position + 5 <= len(head) and head[position] == 0xFF:
        code = head[position + 1]
        if code == _SCAN:
            return head[position + 4]
        position += 1 if code == 0xFF else 2 + _big_endian(head[position + 2 : position + 4])
    return 0


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
