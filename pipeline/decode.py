"""Encoded bytes and boxes in, uint8 images out: the decoder protocol, its reference, and the choice of a backend."""

from __future__ import annotations

import io
import os
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
from mimcl.pipeline.files import DataError
from mimcl.pipeline.restart import RestartNeeded

DECODERS = ("dali-gpu", "dali-cpu", "reference")  # best first
# DALI reads it once a process. With 0, DALI's pool of device memory takes its memory from cudaMalloc, which works where
# the driver's virtual memory management is not supported, as in some sandboxes.
_POOL_VARIABLE = "DALI_USE_VMM"


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

    name: str
    lookahead: int

    def __call__(self, batches: Iterable[Encoded]) -> Iterator[Decoded]: ...


class ReferenceDecoder:
    """Pillow, as torchvision's RandomResizedCrop uses it: what the other decoders are compared with."""

    name = "reference"
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


def make_decoder(name: str, image_size: int, batch_size: int, threads: int, largest: int) -> tuple[Decoder, str]:
    """The named backend, or for "auto" the best that decodes a trial image; and a line that says which and why.

    `batch_size` is the most images a batch has, `largest` the most pixels that an image has before it is cropped.
    Raises DataError when the named backend does not work here, and RestartNeeded when DALI does not start on the GPU
    with its virtual memory pools on: without them it may.
    """
    if name not in ("auto", *DECODERS):
        raise DataError(f"there is no decoder {name!r}; choose auto, {', '.join(DECODERS)}")
    failures = []
    for candidate in DECODERS if name == "auto" else (name,):
        decoder = None
        try:
            decoder = _make(candidate, image_size, batch_size, threads, largest)
            for _, failed in decoder([trial_batch(image_size)]):
                if failed:
                    raise DataError(f"of a plain JPEG, {failed[0][1]}")
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            if candidate == "dali-gpu" and decoder and _POOL_VARIABLE not in os.environ:
                raise RestartNeeded(
                    f"dali-gpu does not start ({reason}); set {_POOL_VARIABLE}=0, which turns DALI's virtual memory "
                    "pools off, and start again, or choose another decoder",
                    {_POOL_VARIABLE: "0"},
                ) from error
            failures.append(f"{candidate}: {reason}")
        else:
            return decoder, "; ".join([f"decoder {candidate}", *failures])
    raise DataError(f"no decoder works here ({'; '.join(failures)}); try --set data.decoder=reference")


def _make(name: str, image_size: int, batch_size: int, threads: int, largest: int) -> Decoder:
    if name == "reference":
        return ReferenceDecoder(image_size, threads)
    if name == "dali-gpu" and not torch.cuda.is_available():
        raise DataError("no CUDA device")
    from mimcl.pipeline.dali import DaliDecoder

    return DaliDecoder(image_size, batch_size, threads, largest, gpu=name == "dali-gpu")


def trial_batch(image_size: int) -> Encoded:
    """One plain square JPEG, cropped to itself: what any decoder decodes."""
    encoded = io.BytesIO()
    Image.new("RGB", (image_size, image_size), (200, 100, 50)).save(encoded, "JPEG")
    data = np.frombuffer(encoded.getvalue(), np.uint8)
    return Encoded([data], np.array([[0, 0, image_size, image_size]], np.int32), np.zeros(1, bool))
