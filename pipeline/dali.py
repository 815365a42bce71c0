"""NVIDIA DALI as a decoder, on the CPU or the GPU; the only file that imports DALI.

On the GPU, DALI decodes the boxes and resizes them. On the CPU it decodes them and torch resizes, which takes a
fraction of the time of DALI's own CPU kernel and rounds as Pillow does; DALI cannot decode at a smaller scale, so that
images for which this is wanted and possible go to the reference.

nvJPEG keeps memory for each of its threads: reserved at the start for images of ordinary size, it grows with a larger
image. The reference decodes the largest images, so that neither memory nor the time for one image gets out of hand.
An image's own header decides which decoder gets it.

DALI fails on a whole batch if it cannot decode one image. That image is found and left to the reference, and the others
go through DALI again: a draw's pixels depend on its own bytes and box, never on other draws.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from inspect import signature
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from nvidia.dali import Pipeline, fn, types

from mimcl.pipeline.data_config import DecoderName
from mimcl.pipeline.decode import DECODED_AT_ONCE, Decoded, Encoded, ReferenceDecoder, trial_batch
from mimcl.pipeline.examine import MAX_PIXELS
from mimcl.pipeline.image_headers import dali_can_decode
from mimcl.pipeline.scaled_decode import scalable

_DEPTH = 2  # batches in DALI at a time: one being decoded, one being consumed; half a window holds two
_HW_DECODER_LOAD = 0.0  # no images to the GPU's JPEG engine: with a split, pixels would depend on the batch
# nvJPEG's memory in bytes per pixel of an image: what NVIDIA's examples reserve for ImageNet's largest, rounded up.
# Each thread has one such buffer on the device and two in pinned memory.
_DEVICE_BYTES, _PINNED_BYTES = 6, 4
_RESERVED_PIXELS = 4_000_000  # more than ordinary photographs have: 500 of ImageNet's have at most 2.5 million
_MAX_GPU_PIXELS = 16_000_000  # of an image that the GPU decodes

# The decoder that can ignore EXIF rotation was experimental in DALI 2.0 and is the main one in 2.4.
_HAS_ORIENTATION = "adjust_orientation" in signature(fn.decoders.image_slice).parameters

# DALI's inputs: encoded images, (n, 2) left and top, (n, 2) width and height, (n, 2) sides of the results.
_Inputs = tuple[list[NDArray[np.uint8]], NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]


class _Split(NamedTuple):
    """A batch, which of its images DALI decodes, and the others, which the reference decodes at the same time."""

    batch: Encoded
    own: NDArray[np.bool_]
    others: Callable[[], Decoded]


class _Refused(Exception):
    """DALI failed on a batch; the argument is its own error."""


class DaliDecoder:
    """Decoder on DALI. Every call has its own pipeline, so that it may be abandoned at any point.

    A batch has at most `batch_size` images, an image at most `largest` pixels; `threads` decode and resize on the CPU.
    With `gpu`, tensors are made on the CUDA device that is torch's current one when the decoder is made, and stay
    there, in order with torch's current stream. `scaled` is for the CPU only.
    """

    def __init__(
        self, image_size: int, batch_size: int, threads: int, largest: int, gpu: bool, scaled: bool = False
    ) -> None:
        self.name: DecoderName = "dali-gpu" if gpu else "dali-cpu"
        self.scaled, self.store = scaled, None
        self.lookahead = _DEPTH - 1
        self._image_size, self._batch_size, self._threads, self._largest = image_size, batch_size, threads, largest
        self._device_id = torch.cuda.current_device() if gpu else None
        self._max_pixels = _MAX_GPU_PIXELS if gpu else MAX_PIXELS
        self._reference = ReferenceDecoder(image_size, threads, scaled)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="resize")

    def __call__(self, batches: Iterable[Encoded]) -> Generator[Decoded, None, None]:
        arriving = map(self._split, batches)
        waiting: deque[_Split] = deque()  # in the pipeline
        again: list[_Split] = []  # batches that a failed pipeline held
        raised: list[Exception] = []  # by `batches`; raised once earlier batches are out

        def feed() -> Iterator[_Inputs]:
            try:
                for split in chain(again, () if raised else arriving):
                    waiting.append(split)
                    # DALI has no empty batches: it decodes one image that is not used.
                    own = _select(split.batch, split.own) if split.own.any() else _STAND_IN
                    yield _inputs(own, self._side(split.batch))
            except Exception as error:
                raised.append(error)

        while True:
            try:
                for outputs in self._run(feed()):
                    yield self._complete(outputs, waiting.popleft())
                if raised:
                    raise raised[0]
                return
            except _Refused as error:
                batch, own, _ = waiting.popleft()
                culprits = self._culprits(batch, own)
                if not culprits:  # not because of an image: out of memory, a lost device
                    raise error.args[0] from None
                own[culprits] = False
                again = [self._divided(batch, own), *waiting]
                waiting.clear()

    def _complete(self, outputs: Any, split: _Split) -> Decoded:
        """Combine DALI's outputs for its own images with the reference's for the others."""
        batch, own, finish = split
        images = self._images(outputs, batch.flips[own] if own.any() else np.zeros(1, bool), self._side(batch))
        failures: list[tuple[int, str]] = []
        if not own.all():
            others, failed = finish()
            places = np.flatnonzero(~own).tolist()
            failures = [(places[among], reason) for among, reason in failed]
            dalis, images = images, images.new_empty(len(own), *images.shape[1:])
            images[torch.from_numpy(own)] = dalis[: own.sum()]  # none if DALI decoded the stand-in
            images[torch.from_numpy(~own)] = others.permute(0, 2, 3, 1).to(images.device)
        return Decoded(images.permute(0, 3, 1, 2), failures)

    def _side(self, batch: Encoded) -> int:
        return batch.image_size or self._image_size

    def _images(self, outputs: Any, flips: NDArray[np.bool_], side: int) -> torch.Tensor:
        """DALI's outputs as a tensor (n, side, side, 3), mirrored where `flips` (n,) says so."""
        if self._device_id is not None:  # a copy on the device: DALI may reuse the buffer
            images = torch.from_dlpack(outputs.as_tensor()).clone()
            mirrored = torch.from_numpy(np.flatnonzero(flips))
            images[mirrored] = images[mirrored].flip(2)
            return images
        resized = np.empty((len(outputs), side, side, 3), np.uint8)

        def resize(first: int) -> None:
            for place in range(first, min(first + DECODED_AT_ONCE, len(resized))):
                # In this order the strides of a single image count as channels-last, for which torch is fast.
                box = torch.from_dlpack(outputs[place])[None].permute(0, 3, 1, 2)
                pixels = F.interpolate(box, (side, side), mode="bicubic", antialias=True)[0].permute(1, 2, 0).numpy()
                resized[place] = pixels[:, ::-1] if flips[place] else pixels

        deque(self._pool.map(resize, range(0, len(resized), DECODED_AT_ONCE)), maxlen=0)
        return torch.from_numpy(resized)

    def _culprits(self, batch: Encoded, own: NDArray[np.bool_]) -> list[int]:
        """Find which of DALI's `own` images it fails on by themselves; returns their positions in the batch."""
        found, places = [], deque(np.flatnonzero(own).tolist())
        while places:
            try:
                for _ in self._run(_inputs(_select(batch, [place]), self._side(batch)) for place in tuple(places)):
                    places.popleft()
            except _Refused:
                found.append(places.popleft())
        return found

    def _run(self, feed: Iterator[_Inputs]) -> Iterator[Any]:
        """DALI's outputs for each item of `feed`, in order; valid until the next one on the CPU.

        Takes _DEPTH items before it yields the first. Raises _Refused in the place of a batch that DALI fails on.
        """
        held: deque[_Inputs] = deque()  # DALI reads these arrays in place

        def source() -> _Inputs:
            held.append(next(feed))
            return held[-1]

        pipeline = self._pipeline(source)
        try:
            pipeline.schedule_run()
            while not pipeline.empty():
                try:
                    (outputs,) = pipeline.share_outputs(cuda_stream=self._consumer())
                except RuntimeError as error:
                    raise _Refused(error.with_traceback(None)) from None  # its frames would keep the pipeline alive
                yield outputs
                held.popleft()  # only now: until its outputs are ready, the GPU may be reading it
                pipeline.release_outputs()
                pipeline.schedule_run()
        finally:
            del pipeline  # waits for running decoding, which uses the held arrays

    def _consumer(self) -> torch.cuda.Stream | None:
        """The CUDA stream that uses the outputs: work that is queued there later finds them complete."""
        return None if self._device_id is None else torch.cuda.current_stream(self._device_id)

    def _pipeline(self, source: Callable[[], _Inputs]) -> Pipeline:
        kind = types.DALIDataType
        kinds = [kind.UINT8, kind.INT32, kind.INT32, kind.FLOAT]
        count = 3 if self._device_id is None else 4  # on the CPU torch resizes
        pipeline = Pipeline(self._batch_size, self._threads, self._device_id, prefetch_queue_depth=_DEPTH)
        with pipeline:
            encoded = fn.external_source(
                lambda: source()[:count], num_outputs=count, dtype=kinds[:count], ndim=1, no_copy=True
            )
            images = self._decode(*encoded[:3])
            if self._device_id is not None:
                cubic, batch_size = types.DALIInterpType.INTERP_CUBIC, self._batch_size
                images = fn.resize(
                    images, size=encoded[3], interp_type=cubic, antialias=True, minibatch_size=batch_size
                )
            pipeline.set_outputs(images)
        return pipeline

    def _decode(self, data: Any, start: Any, shape: Any) -> Any:
        """The part of DALI's graph that turns encoded images and boxes into the boxes' pixels."""
        decoders = fn.decoders if _HAS_ORIENTATION else fn.experimental.decoders
        rules = {"adjust_orientation": False, "jpeg_fancy_upsampling": True}  # stored orientation; chroma as libjpeg
        if self._device_id is None:
            return decoders.image_slice(data, start=start, shape=shape, device="cpu", **rules)
        memory = reserved(self._largest)
        load = {"hw_decoder_load": _HW_DECODER_LOAD}
        return decoders.image_slice(data, start=start, shape=shape, device="mixed", **load, **memory, **rules)

    def _split(self, batch: Encoded) -> _Split:
        own = np.array([dali_can_decode(data, self._max_pixels) for data in batch.data], bool)
        return self._divided(batch, own & ~scalable(batch.data, batch.boxes, self._side(batch)) if self.scaled else own)

    def _divided(self, batch: Encoded, own: NDArray[np.bool_]) -> _Split:
        """Start with the images that are not DALI's own."""
        return _Split(batch, own, self._reference.start(_select(batch, ~own)))


def reserved(largest: int) -> dict[str, int]:
    """Bytes that each of nvJPEG's threads reserves at the start, for images of up to `largest` pixels."""
    pixels = min(largest, _RESERVED_PIXELS)
    return {"device_memory_padding": _DEVICE_BYTES * pixels, "host_memory_padding": _PINNED_BYTES * pixels}


def _select(batch: Encoded, which: NDArray[np.bool_] | list[int]) -> Encoded:
    places = np.arange(len(batch.data))[which].tolist()
    return Encoded([batch.data[place] for place in places], batch.boxes[which], batch.flips[which], batch.image_size)


def _inputs(batch: Encoded, side: int) -> _Inputs:
    corners, sizes = (np.ascontiguousarray(part) for part in (batch.boxes[:, :2], batch.boxes[:, 2:]))
    return batch.data, corners, sizes, np.full((len(batch.data), 2), side, np.float32)


_STAND_IN = trial_batch(1)
