"""All images of a split, decoded once and kept on the device that crops them: a store and a decoder in one.

For small images reading and decoding takes longer than everything else, and their pixels fit into memory. The encoded
form of a kept image is its sample id in 8 bytes, so that the stream handles it like any other: a sample that could not
be read or decoded is bad whenever a draw needs it. Pixels are those of the reference decoder.

Small images, and all images on a GPU, are resized many at a time, see `exact_resize.py`. On a CPU large ones are faster
one by one, in threads, as after DALI's decoder.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from mimcl.pipeline.cgroup import free_memory
from mimcl.pipeline.data_config import DecoderName
from mimcl.pipeline.decode import DECODED_AT_ONCE, Decoded, Encoded, decode_one
from mimcl.pipeline.exact_resize import on_device, resize_boxes
from mimcl.pipeline.files import DataError
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.open_store import open_store
from mimcl.pipeline.read_plan import ReadPlan, plan_reads
from mimcl.pipeline.store import Defect, Store, defect_of

_CHUNK = 256  # images read and decoded at a time at the start
_MATRIX_SIDE = 96  # pixels; up to here matrices are faster than one image after another on a CPU
_SHARE = 0.8  # of the free memory
_VALUES = 1 << 25  # float64 pixels in a product at a time: 268 MB


class KeptPixels:
    """Decoder of a split whose images it decodes when it is made, and the Store to read them from.

    Every process has a copy of its own, of `pixel_bytes(index)` bytes. It may be used by one stream at a time.
    """

    name: DecoderName = "reference"
    lookahead = 0
    scaled = False
    wants_read_plans = False

    def __init__(
        self,
        index: ShardIndex,
        image_size: int,
        threads: int,
        device: torch.device | str = "cpu",
        on_progress: Callable[[int], None] = lambda images: None,
    ) -> None:
        """Decode all images in `threads`; `on_progress` is called with the numbers of images just decoded.

        Raises DataError for shards that cannot be read. `require_room` says before whether they fit.
        """
        self._index, self._image_size, self._device = index, image_size, torch.device(device)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        sizes = 3 * index.width.astype(np.int64) * index.height
        self._offsets = np.concatenate([[0], np.cumsum(sizes)])
        largest = max(int(index.width.max()), int(index.height.max()))
        self._by_matrices = self._device.type == "cuda" or largest <= _MATRIX_SIDE
        width, height = int(index.width[0]), int(index.height[0])
        self._is_uniform = bool((index.width == width).all() and (index.height == height).all())
        self._pixels = torch.empty(int(self._offsets[-1]), dtype=torch.uint8, device=self._device)
        self._defects: dict[int, Defect] = {}
        store = open_store(index)
        try:
            for first in range(0, index.samples, _CHUNK):
                self._keep(store, np.arange(first, min(first + _CHUNK, index.samples)))
                on_progress(min(_CHUNK, index.samples - first))
        finally:
            store.close()

    @property
    def store(self) -> Store:
        """This object: samples are read from it, not from the shards."""
        return self

    @property
    def bad(self) -> int:
        """How many samples could not be read or decoded."""
        return len(self._defects)

    # The decoder

    def __call__(self, batches: Iterable[Encoded]) -> Generator[Decoded, None, None]:
        for batch in batches:
            sample_ids = np.concatenate(batch.data).view(np.int64)
            side = batch.image_size or self._image_size
            yield Decoded(self._cropped(sample_ids, batch.boxes, batch.flips, side), [])

    def _cropped(
        self, sample_ids: NDArray[np.int64], boxes: NDArray[np.int32], flips: NDArray[np.bool_], side: int
    ) -> torch.Tensor:
        if not self._by_matrices:
            return self._one_by_one(sample_ids, boxes, flips, side)
        rows = max(int(self._index.height[0]), side) if self._is_uniform else int(boxes[:, 3].max())
        columns = max(int(self._index.width[0]), side) if self._is_uniform else int(boxes[:, 2].max())
        at_once = max(1, _VALUES // (3 * rows * max(columns, side)))
        parts = []
        for first in range(0, len(sample_ids), at_once):
            part = slice(first, first + at_once)
            pixels, inside = self._regions(sample_ids[part], boxes[part])
            parts.append(resize_boxes(pixels, inside, flips[part], side))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _regions(
        self, sample_ids: NDArray[np.int64], boxes: NDArray[np.int32]
    ) -> tuple[torch.Tensor, NDArray[np.int32]]:
        """Pixels (n, H, 3, W) with the boxes, and where those lie there: whole images if all have the same size."""
        index, device = self._index, self._device
        if self._is_uniform:
            images = self._pixels.view(-1, int(index.height[0]), 3, int(index.width[0]))
            return images.index_select(0, on_device(sample_ids, device)), boxes
        width = index.width[sample_ids].astype(np.int64)
        starts = on_device(self._offsets[sample_ids] + 3 * width * boxes[:, 1] + boxes[:, 0], device)
        rows, columns = (torch.arange(int(boxes[:, side].max()), device=device) for side in (3, 2))
        lines = starts[:, None] + torch.arange(3 * len(rows), device=device) * on_device(width, device)[:, None]
        places = (lines[..., None] + columns).clamp_(max=len(self._pixels) - 1)  # beyond a box they have no weight
        inside = np.concatenate([np.zeros_like(boxes[:, :2]), boxes[:, 2:]], axis=1)
        return self._pixels[places].view(len(boxes), len(rows), 3, len(columns)), inside

    def _one_by_one(
        self, sample_ids: NDArray[np.int64], boxes: NDArray[np.int32], flips: NDArray[np.bool_], side: int
    ) -> torch.Tensor:
        resized = np.empty((len(sample_ids), side, side, 3), np.uint8)

        def resize(first: int) -> None:
            for place in range(first, min(first + DECODED_AT_ONCE, len(resized))):
                left, top, width, height = boxes[place].tolist()
                box = self._image(int(sample_ids[place]))[top : top + height, left : left + width]
                pixels = F.interpolate(box[None].permute(0, 3, 1, 2), (side, side), mode="bicubic", antialias=True)
                whole = pixels[0].permute(1, 2, 0).numpy()
                resized[place] = whole[:, ::-1] if flips[place] else whole

        deque(self._pool.map(resize, range(0, len(resized), DECODED_AT_ONCE)), maxlen=0)
        return torch.from_numpy(resized).permute(0, 3, 1, 2)

    def _image(self, sample_id: int) -> torch.Tensor:
        """The pixels (H, W, 3) of an image that is resized by itself."""
        size = int(self._index.height[sample_id]), int(self._index.width[sample_id]), 3
        return self._pixels[int(self._offsets[sample_id]) : int(self._offsets[sample_id + 1])].view(size)

    # The store

    def read(self, sample_ids: NDArray[np.int64]) -> list[NDArray[np.uint8] | Defect]:
        """The encoded form of each sample, its id in 8 bytes, or why it is bad."""
        found: list[NDArray[np.uint8] | Defect] = list(np.ascontiguousarray(sample_ids).view(np.uint8).reshape(-1, 8))
        if self._defects:
            found = [self._defects.get(id_, data) for id_, data in zip(sample_ids.tolist(), found, strict=True)]
        return found

    def plan_reads(self, sample_ids: NDArray[np.int64]) -> ReadPlan:
        return plan_reads(self._index, sample_ids)

    def prefetch(self, reads: ReadPlan) -> None:
        """Do nothing: all is here."""

    def activity(self) -> str:
        return "looking up decoded images"

    def paused_until(self) -> float:
        """Memory is never paused."""
        return -math.inf

    def close(self) -> None:
        """Do nothing: the pixels stay."""

    def _keep(self, store: Store, sample_ids: NDArray[np.int64]) -> None:
        """Decode these samples, which follow one another, into their place."""
        if store.wants_read_plans:
            store.prefetch(store.plan_reads(sample_ids))
        first, last = self._offsets[sample_ids[0]], self._offsets[sample_ids[-1] + 1]
        pixels = np.zeros(last - first, np.uint8)
        decode = partial(self._decode, pixels, first)
        bad = self._pool.map(decode, sample_ids.tolist(), store.read(sample_ids))
        self._defects.update((defect[0], defect[1]) for defect in bad if defect)
        self._pixels[first:last].copy_(torch.from_numpy(pixels))

    def _decode(
        self, into: NDArray[np.uint8], first: int, sample_id: int, data: NDArray[np.uint8] | Defect
    ) -> tuple[int, Defect] | None:
        index = self._index
        if isinstance(data, Defect):
            return sample_id, data
        width, height = int(index.width[sample_id]), int(index.height[sample_id])
        image = decode_one(data, [0, 0, width, height], False, None)
        if isinstance(image, str):
            return sample_id, defect_of(index, sample_id, image)
        start, stop = self._offsets[sample_id] - first, self._offsets[sample_id + 1] - first
        into[start:stop] = (image.swapaxes(1, 2) if self._by_matrices else image).ravel()
        return None


def pixel_bytes(index: ShardIndex) -> int:
    """Bytes of all images of a split once they are decoded."""
    return 3 * int(np.multiply(index.width, index.height, dtype=np.int64).sum())


def require_room(index: ShardIndex, device: torch.device, local_size: int = 1) -> None:
    """Raise DataError unless the pixels take at most 80 % of the device's free memory: the rest is for the model.

    Each of the `local_size` processes on this machine keeps them; they share its memory, or its GPUs.
    """
    needed, copies, free, where = pixel_bytes(index), local_size, 0, "the free memory"
    if device.type == "cuda":
        copies, where = math.ceil(local_size / torch.cuda.device_count()), "what is free on the GPU"
        free, _ = torch.cuda.mem_get_info(device)
    else:
        free = free_memory()
    if copies * needed > _SHARE * free:
        each = f" in each of {copies} processes" if copies > 1 else ""
        raise DataError(
            f"data.keep_decoded needs {needed / 1e6:,.1f} MB{each} for {index.samples:,} decoded images, more than "
            f"{_SHARE:.0%} of {where} ({free / 1e6:,.1f} MB); leave it out, or pack smaller images"
        )
