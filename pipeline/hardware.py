"""Which images the JPEG engine of a GPU takes, by their headers.

NVIDIA's documentation of nvJPEG (13.2, NVJPEG_BACKEND_HARDWARE): baseline JPEG, a single scan, 1 or 3 channels, chroma
neither 4:1:1 nor 4:1:0. It gives no limit on the size; MAX_SIDE is ours, a quarter of what the format can say, so that
what is huge is seen.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mimcl.pipeline.examine import extension_of
from mimcl.pipeline.image_headers import big_endian, frame_header

MAX_SIDE = 16_384  # pixels
_BASELINE, _EXTENDED, _PROGRESSIVE, _SCAN = 0xC0, 0xC1, 0xC2, 0xDA
_ARITHMETIC = range(0xC9, 0xD0)
# Sampling factors (horizontal, vertical) of luminance where chrominance has (1, 1), in what a file may say of them.
_UNUSUAL_CHROMA = {(4, 1): "4:1:1 chroma", (4, 2): "4:1:0 chroma"}


def refusal(data: NDArray[np.uint8]) -> str | None:
    """Why the JPEG engine does not take an image, in a word or two; None if it does."""
    head = memoryview(data)
    extension = extension_of(head)
    if extension != "jpg":
        return f"no JPEG but {extension}" if extension else "no JPEG"
    frame = frame_header(head)
    if frame is None:
        return "unreadable header"
    code, start = frame
    if code == _PROGRESSIVE:
        return "progressive"
    if code in _ARITHMETIC:
        return "arithmetic coding"
    channels = head[start + 7]
    if code != _BASELINE:
        return "extended sequential" if code == _EXTENDED else "lossless or hierarchical"
    if len(head) < start + 8 + 3 * channels:
        return "unreadable header"
    if channels not in (1, 3):
        return "CMYK" if channels == 4 else f"{channels} channels"
    factors = [divmod(head[start + 9 + 3 * channel], 16) for channel in range(channels)]
    if channels == 3:
        if 0 in factors[1]:
            return "unreadable header"
        chroma = tuple(whole / part for whole, part in zip(factors[0], factors[1], strict=True))
        if chroma in _UNUSUAL_CHROMA:
            return _UNUSUAL_CHROMA[chroma]
    if max(big_endian(head[start + 3 : start + 5]), big_endian(head[start + 5 : start + 7])) > MAX_SIDE:
        return "huge"
    return None if _channels_of_first_scan(head, start) == channels else "several scans"


def _channels_of_first_scan(head: memoryview, start: int) -> int:
    """How many channels the scan after the frame segment at `start` holds; 0 where there is none."""
    position = start + big_endian(head[start : start + 2])
    while position + 5 <= len(head) and head[position] == 0xFF:
        code = head[position + 1]
        if code == _SCAN:
            return head[position + 4]
        position += 1 if code == 0xFF else 2 + big_endian(head[position + 2 : position + 4])
    return 0
