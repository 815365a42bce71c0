"""The decoder protocol, from encoded bytes and crop boxes to uint8 images, and its reference implementation."""

from __future__ import annotations

import io
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from mimcl.pipeline.colours import to_rgb
from mimcl.pipeline.data_config import DecoderName
from mimcl.pipeline.pillow import open_image
from mimcl.pipeline.scaled_decode import decode_scaled, scale_of
from mimcl.pipeline.store import Store

DECODED_AT_ONCE = 4  # images of a task for a thread: handing one over takes longer than resizing a small image


@dataclass(frozen=True)
class Encoded:
    """Input of a decoder: n encoded images, (n, 4) rows of left, top, width, height in pixels, (n,) mirror flags."""

    data: list[NDArray[np.uint8]]
    boxes: NDArray[np.int32]
    flips: NDArray[np.bool_]
    image_size: int | None = None  # side of the results in pixels; None: the decoder's


class Decoded(NamedTuple):
    """Output of a decoder; pixels are zero where even the reference decoder failed."""

    images: torch.Tensor  # uint8 (n, 3, image_size, image_size)
    failures: list[tuple[int, str]]  # position in the batch and reason in one line, by position


class Decoder(Protocol):
    """Crops each image to its box, resizes (bicubic, antialiased) and mirrors it; stored orientation, three channels.

    Results have the side of the decoder, or of their batch. Takes batches one after the other and yields their results
    in order; it may take up to `lookahead` more batches before it yields one. The reference decoder decodes the images
    that it fails on. If it is `scaled`, JPEGs that are much larger than needed are decoded at a smaller scale, see
    `scaled_decode.py`. What it decodes is read from its `store`; None: from the shards.
    """

    @property
    def name(self) -> DecoderName: ...
    @property
    def lookahead(self) -> int: ...
    @property
    def scaled(self) -> bool: ...
    @property
    def store(self) -> Store | None: ...

    def __call__(self, batches: Iterable[Encoded]) -> Generator[Decoded, None, None]: ...


class ReferenceDecoder:
    """Decodes with Pillow, as torchvision's RandomResizedCrop does; other decoders are compared with this one."""

    name: DecoderName = "reference"
    lookahead = 0
    store: Store | None = None

    def __init__(self, image_size: int, threads: int, scaled: bool = False) -> None:
        self._image_size, self.scaled = image_size, scaled
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")

    def __call__(self, batches: Iterable[Encoded]) -> Generator[Decoded, None, None]:
        for batch in batches:
            yield self.decode(batch)

    def decode(self, batch: Encoded) -> Decoded:
        """Decode one batch, its images in parallel threads."""
        return self.start(batch)()

    def start(self, batch: Encoded) -> Callable[[], Decoded]:
        """Start to decode one batch in threads; the function that is returned waits for the result."""
        boxes, flips, size = batch.boxes.tolist(), batch.flips.tolist(), batch.image_size or self._image_size
        images = np.zeros((len(batch.data), size, size, 3), np.uint8)

        def decode(first: int) -> list[tuple[int, str]]:
            failures = []
            for place in range(first, min(first + DECODED_AT_ONCE, len(images))):
                pixels = decode_one(batch.data[place], boxes[place], flips[place], size, self.scaled)
                if isinstance(pixels, str):
                    failures.append((place, pixels))
                else:
                    images[place] = pixels
            return failures

        parts = self._pool.map(decode, range(0, len(images), DECODED_AT_ONCE))
        return lambda: Decoded(torch.from_numpy(images).permute(0, 3, 1, 2), list(chain.from_iterable(parts)))


def decode_one(
    data: NDArray[np.uint8], box: list[int], flip: bool, image_size: int | None, scaled: bool = False
) -> NDArray[np.uint8] | str:
    """Decode one image, (image_size, image_size, 3) uint8; or return in one line why Pillow cannot.

    Without an `image_size` the box keeps its size.
    """
    resized = None
    if image_size and scaled and (scale := scale_of(data, box, image_size)) > 1:
        resized = decode_scaled(data, box, image_size, scale)
    left, top, width, height = box
    try:
        if resized is None:
            with open_image(data.data) as image:
                crop = to_rgb(image.crop((left, top, left + width, top + height)))
            resized = crop.resize((image_size, image_size), Image.Resampling.BICUBIC) if image_size else crop
    except MemoryError:  # of the machine, not of the image
        raise
    except UnidentifiedImageError:  # its message contains a memory address
        return "it does not decode: not an image format that Pillow knows"
    except Exception as error:
        return f"it does not decode: {' '.join(str(error).split()) or type(error).__name__}"
    return np.asarray(resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else resized)


def trial_batch(image_size: int) -> Encoded:
    """A batch of one plain square JPEG, uncropped, which every decoder can decode."""
    encoded = io.BytesIO()
    Image.new("RGB", (image_size, image_size), (200, 100, 50)).save(encoded, "JPEG")
    data = np.frombuffer(encoded.getvalue(), np.uint8)
    return Encoded([data], np.array([[0, 0, image_size, image_size]], np.int32), np.zeros(1, bool))
