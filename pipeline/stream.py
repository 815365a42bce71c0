"""The stream: plan -> draws -> bytes -> decode -> Batch, a pure function of the draw number made ahead by a thread."""

from __future__ import annotations

import math
import os
import queue
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from mimcl.pipeline.augment import STREAM_MASK, Transform, hash64
from mimcl.pipeline.decode import DecodeError, Decoder, Encoded
from mimcl.pipeline.files import DataError
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.store import ShardStore


@dataclass(frozen=True)
class DataConfig:
    """Where the images are and how many are used at a time. Sizes in pixels and images."""

    root: str = "shards"
    decoder: Literal["auto", "dali-gpu", "dali-cpu", "reference"] = "auto"
    image_size: int = 224
    batch_size: int = 4096
    micro_batch_size: int = 256
    decode_threads: int = os.cpu_count() or 1
    prefetch: int = 4  # micro-batches made ahead

    def __post_init__(self) -> None:
        for name in ("image_size", "batch_size", "micro_batch_size", "decode_threads", "prefetch"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.{name} is {getattr(self, name)}; it must be at least 1")


class Window(Protocol):
    """A stretch of draws with one temperature; the stream uses its first three columns and passes the rest on."""

    number: int
    first_draw: int
    sample_ids: NDArray[np.int64]
    distances: NDArray[np.float32]
    temperature: float
    effective_fraction: float
    phase: str


class Plan(Protocol):
    """Which sample each draw is: windows of `window_length` draws, `draws` in all."""

    draws: int
    window_length: int

    def window(self, number: int) -> Window: ...


@dataclass(frozen=True)
class Batch:
    """A rank's micro-batch of n draws, in order of their numbers."""

    images: torch.Tensor  # uint8, (n, 3, H, W), on the device
    draws: NDArray[np.int64]
    keys: torch.Tensor  # int64 (n,), on the device: the hash that mask noise is made from
    sample_ids: NDArray[np.int64]
    labels: NDArray[np.int32]
    distances: torch.Tensor  # float32 (n,), on the device; NaN without prototypes
    window: Window
    position: int  # where the stream goes on once the step of this micro-batch is done


def micro_batches(batch_size: int, micro_batch_size: int, rank: int = 0, world_size: int = 1) -> list[tuple[int, int]]:
    """A rank's share of a batch, cut into micro-batches: (start, stop) offsets in [0, batch_size).

    Rank r of R has [floor(rB/R), floor((r+1)B/R)); every rank has the same number of micro-batches, none empty.
    """
    if world_size > batch_size:
        raise ValueError(f"data.batch_size {batch_size} is smaller than the {world_size} processes; raise it")
    first, last = rank * batch_size // world_size, (rank + 1) * batch_size // world_size
    count = math.ceil(math.ceil(batch_size / world_size) / micro_batch_size)
    if count > batch_size // world_size:
        raise ValueError(
            f"data.micro_batch_size {micro_batch_size} cannot cut {batch_size} draws alike on {world_size} processes; "
            "make it 2 or more"
        )
    return list(pairwise(first + k * (last - first) // count for k in range(count + 1)))


class Stream:
    """Iterates over the Batches of one rank from draw `start` to the plan's end. Iterate it once at a time."""

    def __init__(
        self,
        plan: Plan,
        index: ShardIndex,
        decoder: Decoder,
        transform: Transform,
        *,
        seed: int,
        batch_size: int,
        micro_batch_size: int,
        prefetch: int,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        if start % batch_size:
            raise ValueError(f"the stream starts at a multiple of the batch size {batch_size}, not at draw {start}")
        if plan.window_length % batch_size:
            raise ValueError(f"a window of {plan.window_length} draws is no multiple of the batch size {batch_size}")
        self._plan, self._index, self._decoder, self._transform = plan, index, decoder, transform
        self._store = ShardStore(index)
        self._seed, self._batch_size, self._start = seed, batch_size, start
        self._parts = micro_batches(batch_size, micro_batch_size, rank, world_size)
        self._device = torch.device(device)
        # Copies and DALI's outputs go through a CUDA stream of their own, beside the one that trains.
        self._side = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
        longest = max(stop - first for first, stop in self._parts)
        # Never more than half a window ahead; never less than the decoder needs in order to yield.
        self._ahead = max(min(prefetch, plan.window_length // (2 * longest)), decoder.lookahead + 1)

    def __iter__(self) -> Iterator[Batch]:
        """Batches in order; errors of the background thread come out here, where the batch would have."""
        free, done = threading.Semaphore(self._ahead), threading.Event()
        results: queue.SimpleQueue[Batch | Exception | None] = queue.SimpleQueue()
        consumer = torch.cuda.current_stream(self._device) if self._side else None

        def produce() -> None:
            try:
                with torch.cuda.stream(self._side):  # does nothing for None
                    for batch in self._batches(free, done):
                        if self._side:  # this thread waits, so that the consumer need not
                            self._side.synchronize()
                            for tensor in (batch.images, batch.keys, batch.distances):
                                tensor.record_stream(consumer)
                        results.put(batch)
                results.put(None)
            except Exception as error:
                results.put(error)

        thread = threading.Thread(target=produce, name="stream", daemon=True)
        thread.start()
        try:
            while (item := results.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                free.release()
                yield item
        finally:
            done.set()
            free.release()
            thread.join()

    def _batches(self, free: threading.Semaphore, done: threading.Event) -> Iterator[Batch]:
        waiting: deque[tuple[Window, NDArray[np.int64], NDArray[np.int64]]] = deque()
        numbered = self._draws()

        def encoded() -> Iterator[Encoded]:
            for window, draws in numbered:
                free.acquire()
                if done.is_set():
                    return
                sample_ids = window.sample_ids[draws - window.first_draw]
                boxes, flips = self._transform(draws, self._index.width[sample_ids], self._index.height[sample_ids])
                waiting.append((window, draws, sample_ids))
                yield Encoded(self._store.read(sample_ids), boxes, flips)

        try:
            for decoded in self._decoder(encoded()):
                yield self._batch(decoded, *waiting.popleft())
        except DecodeError as error:
            sample_id = waiting[0][2][error.place]
            raise DataError(
                f"sample {self._index.key(sample_id)} ({self._index.path(sample_id)}) cannot be decoded: {error}; "
                "pack again with `mimcl shard --decode`"
            ) from error
        finally:
            numbered.close()  # ends the planning thread at once, whoever still holds the error's frames

    def _draws(self) -> Iterator[tuple[Window, NDArray[np.int64]]]:
        """The window and the draw numbers of each micro-batch; the next window is planned while this one is used."""
        total, length = self._plan.draws, self._plan.window_length
        with ThreadPoolExecutor(1, thread_name_prefix="plan") as planner:
            planned = planner.submit(self._plan.window, self._start // length) if self._start < total else None
            for first in range(self._start, total, self._batch_size):
                if first % length == 0 or first == self._start:
                    window, following = planned.result(), (first // length + 1)
                    planned = planner.submit(self._plan.window, following) if following * length < total else None
                for start, stop in self._parts:
                    draws = np.arange(first + start, min(first + stop, total))
                    if len(draws):
                        yield window, draws

    def _batch(
        self, images: torch.Tensor, window: Window, draws: NDArray[np.int64], sample_ids: NDArray[np.int64]
    ) -> Batch:
        keys = hash64(self._seed, draws, STREAM_MASK).view(np.int64)
        return Batch(
            images=self._to_device(images),
            draws=draws,
            keys=self._to_device(torch.from_numpy(keys)),
            sample_ids=sample_ids,
            labels=self._index.label[sample_ids],
            distances=self._to_device(torch.from_numpy(window.distances[draws - window.first_draw])),
            window=window,
            position=int(draws[0]) // self._batch_size * self._batch_size + self._batch_size,
        )

    def _to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        if self._device.type == "cuda" and not tensor.is_cuda:
            tensor = tensor.pin_memory()
        return tensor.to(self._device, non_blocking=True)


class InOrder:
    """The plan that reads samples once in row order, for features and evaluation: draw g is sample g * stride."""

    window_length = 1 << 16

    def __init__(self, samples: int, stride: int = 1) -> None:
        self.draws, self._stride = math.ceil(samples / stride), stride

    def window(self, number: int) -> Window:
        first = number * self.window_length
        draws = np.arange(first, min(first + self.window_length, self.draws))
        return _InOrderWindow(number, first, draws * self._stride, np.full(len(draws), np.nan, np.float32))


@dataclass(frozen=True)
class _InOrderWindow:
    number: int
    first_draw: int
    sample_ids: NDArray[np.int64]
    distances: NDArray[np.float32]
    temperature: float = math.inf
    effective_fraction: float = math.nan
    phase: str = "in order"
