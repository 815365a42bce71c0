"""The decoder protocol, from encoded bytes and crop boxes to uint8 images, and its reference implementation."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from mimcl.pipeline.colours import to_rgb
from mimcl.pipeline.data_config import DecoderName


@dataclass(frozen=True)
class Encoded:
    """What a decoder gets: n encoded images, (n, 4) rows of left, top, width, height in pixels, (n,) mirror flags."""

    data: list[NDArray[np.uint8]]
    boxes: NDArray[np.int32]
    flips: NDArray[np.bool_]


class Decoded(NamedTuple):
    """What a decoder makes of them: where even the reference failed, pixels are zero."""

    images: torch.Tensor  # uint8 (n, 3, image_size, image_size)
    failures: list[tuple[int, str]]  # place in the batch, reason in a line; by place


class Decoder(Protocol):
    """Crops each image to its box, resizes (bicubic, antialiased) and mirrors it; stored orientation, three channels.

    Takes batches one after the other and yields, in order, what became of them; it may take up to `lookahead` more
    batches before it yields one. An image that it fails at is left to the reference.
    """

    name: DecoderName
    lookahead: int

    def __call__(self, batches: Iterable[Encoded]) -> Iterator[Decoded]: ...


class ReferenceDecoder:
    """Pillow, as torchvision's RandomResizedCrop uses it: what the other decoders are compared with."""

    name: DecoderName = "reference"
    lookahead = 0

    def __init__(self, image_size: int, threads: int) -> None:
        self._image_size = image_size
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")

    def __call__(self, batches: Iterable[Encoded]) -> Iterator[Decoded]:
        for batch in batches:
            yield self.decode(batch)

    def decode(self, batch: Encoded) -> Decoded:
        boxes, flips, size = batch.boxes.tolist(), batch.flips.tolist(), self._image_size
        images, failures = np.zeros((len(batch.data), size, size, 3), np.uint8), []
        for place, pixels in enumerate(self._pool.map(decode_one, batch.data, boxes, flips, repeat(size))):
            if isinstance(pixels, str):
                failures.append((place, pixels))
            else:
                images[place] = pixels
        return Decoded(torch.from_numpy(images).permute(0, 3, 1, 2), failures)


def decode_one(data: NDArray[np.uint8], box: list[int], flip: bool, image_size: int) -> NDArray[np.uint8] | str:
    """One image, (image_size, image_size, 3) uint8, or in a line why Pillow cannot decode it."""
    left, top, width, height = box
    try:
        with Image.open(io.BytesIO(data)) as image:
            crop = to_rgb(image.crop((left, top, left + width, top + height)))
    except MemoryError:  # the machine's fault, not the image's
        raise
    except UnidentifiedImageError:  # whose message holds an address in memory
        return "it does not decode: no image that Pillow knows"
    except Exception as error:
        return f"it does not decode: {' '.join(str(error).split()) or type(error).__name__}"
    resized = crop.resize((image_size, image_size), Image.Resampling.BICUBIC)
    return np.asarray(resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else resized)


def trial_batch(image_size: int) -> Encoded:
    """One plain square JPEG, cropped to itself: what any decoder decodes."""
    encoded = io.BytesIO()
    Image.new("RGB", (image_size, image_size), (200, 100, 50)).save(encoded, "JPEG")
    data = np.frombuffer(encoded.getvalue(), np.uint8)
    return Encoded([data], np.array([[0, 0, image_size, image_size]], np.int32), np.zeros(1, bool))
