"""JPEGs decoded at 1/4 or 1/8 of their size, where a crop is at least that much larger than it has to be.

libjpeg then computes fewer pixels, each about the mean of those it stands for. Pixels differ a little from those of a
crop that was decoded at full size and resized, so this is an option. At 1/2 it would take longer than DALI takes for
the box at full size, since every row is decoded, not only the box's.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mimcl.pipeline.examine import extension_of
from mimcl.pipeline.image_headers import jpeg_channels

_SCALES = (8, 4)  # largest first


def scale_of(data: NDArray[np.uint8], box: list[int], image_size: int) -> int:
    """Return by how much the decoding of an image can shrink it: 8, 4, or 1 for not at all, as for all but JPEGs.

    The box, (left, top, width, height), keeps at least `image_size` pixels on both sides.
    """
    scale = next((scale for scale in _SCALES if min(box[2:]) >= scale * image_size), 1)
    is_scalable = scale > 1 and extension_of(data.data) == "jpg" and jpeg_channels(data) in (1, 3)
    return scale if is_scalable else 1


def scalable(data: list[NDArray[np.uint8]], boxes: NDArray[np.int32], image_size: int) -> NDArray[np.bool_]:
    """Return which of n images, with boxes (n, 4), can be decoded at 1/4 or less, (n,)."""
    large = boxes[:, 2:].min(axis=1) >= _SCALES[-1] * image_size
    for place in np.flatnonzero(large).tolist():
        large[place] = scale_of(data[place], boxes[place].tolist(), image_size) > 1
    return large


def decode_scaled(data: NDArray[np.uint8], box: list[int], image_size: int, scale: int) -> Image.Image | None:
    """Return the box of a JPEG, decoded at 1/`scale` and resized to `image_size` pixels, as RGB; None if it fails."""
    import cv2  # in one call, without the interpreter's lock: in two threads faster than Pillow's decoder

    flags = {4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}
    try:
        pixels = cv2.imdecode(data, flags[scale] | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        return None
    if pixels is None:
        return None
    left, top = box[0] / scale, box[1] / scale
    right, bottom = left + box[2] / scale, top + box[3] / scale
    # Whole pixels around the box first: a resize may look beyond the box, but a crop ends there.
    first_x, first_y = math.floor(left), math.floor(top)
    around = Image.fromarray(pixels[first_y : math.ceil(bottom), first_x : math.ceil(right)])
    inside = left - first_x, top - first_y, right - first_x, bottom - first_y
    resized = around.resize((image_size, image_size), Image.Resampling.BICUBIC, inside)
    return Image.fromarray(np.ascontiguousarray(np.asarray(resized)[:, :, ::-1]))  # from BGR
