"""The stream of batches, planned, read and decoded ahead of their use: a pure function of the draw number."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from mimcl.pipeline.augment import STREAM_MASK, Transform, hash64
from mimcl.pipeline.batch_shares import BatchShares
from mimcl.pipeline.data_config import DataConfig
from mimcl.pipeline.decode import Decoder, Encoded
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.plan import Plan, Window
from mimcl.pipeline.producer import Producer
from mimcl.pipeline.progress import Progress, StallError
from mimcl.pipeline.read_plan import ReadPlanner, ReadStats
from mimcl.pipeline.substitutes import BadSample, MicroBatch, SampleReader
from mimcl.pipeline.window_prefetch import PlannedWindow, ReadAnnouncer, StopEvent, WindowPrefetch


@dataclass(frozen=True)
class Batch:
    """A rank's micro-batch of n draws, in order of their numbers."""

    images: torch.Tensor  # uint8, (n, 3, H, W), on the device; with V views (V n, 3, H, W), one view after another
    draws: NDArray[np.int64]
    keys: torch.Tensor  # int64 (n,), on the device: the hash that mask noise is made from
    sample_ids: NDArray[np.int64]  # unlike the window's, with substitutes for bad samples
    labels: NDArray[np.int32]
    distances: torch.Tensor  # float32 (n,), on the device; NaN without prototypes
    bad: tuple[BadSample, ...]  # in order of the draws; those of a draw in the order they were tried
    window: Window
    read_stats: ReadStats | None  # of that window, on this machine; None if reads are not planned
    position: int  # the draw to resume at once the step of this micro-batch is done


@dataclass(frozen=True)
class ReadOptions:
    """How a stream reads: how far ahead, in what order, and how long its consumer waits for a batch."""

    prefetch: int = DataConfig.prefetch  # micro-batches
    ordered: bool = False  # whether the plan's windows are in the order of the shards
    stall_timeout: float = DataConfig.stall_timeout  # seconds
    whole_shards: bool = False  # prefetch remote shards whole; the cache must have room for all
    keep_bad: bool = False  # whether a bad sample stays, as a black image, instead of being replaced


class Stream:
    """Iterates over the Batches of one rank from draw `start` to the plan's end. Iterate it once at a time."""

    def __init__(
        self,
        plan: Plan,
        index: ShardIndex,
        decoder: Decoder,
        transform: Transform,
        shares: BatchShares,
        options: ReadOptions = ReadOptions(),
        *,
        seed: int,
        start: int = 0,
        device: torch.device | str = "cpu",
        augment_batch: Callable[[torch.Tensor, NDArray[np.int64]], torch.Tensor] | None = None,
        side_at: Callable[[int], int] | None = None,
    ) -> None:
        """`augment_batch(images, draws)` changes decoded images on the device; the background thread calls it.

        `side_at(draw)` is the side in pixels of the images of the step that begins at that draw; None: the decoder's.

        Reads are planned and announced to the store if the windows are ordered by shard, or if the store wants it.
        Raises ValueError unless `start` and the plan's windows are multiples of the batch size.
        """
        if start % shares.batch_size:
            raise ValueError(f"a stream must start at a multiple of the batch size {shares.batch_size} (draw {start})")
        if plan.window_length % shares.batch_size:
            raise ValueError(
                f"a window ({plan.window_length} draws) must be a multiple of the batch size {shares.batch_size}"
            )
        self._plan, self._index, self._decoder, self._shares = plan, index, decoder, shares
        self._progress = Progress()
        self._samples = SampleReader(
            plan,
            index,
            transform,
            self._progress,
            options.whole_shards,
            options.keep_bad,
            decoder.scaled,
            decoder.store,
        )
        self._seed, self._start, self._stall_timeout = seed, start, options.stall_timeout
        store = self._samples.store
        plans_reads = decoder.store is None and (options.ordered or store.wants_read_plans)
        self._read_planner = ReadPlanner(index, store.plan_reads, shares) if plans_reads else None
        self._device, self._augment_batch, self._side_at = torch.device(device), augment_batch, side_at
        # Copies and DALI's outputs use a CUDA stream of their own, in parallel with the one that trains.
        self._cuda_stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
        share_of_window = plan.window_length // shares.batch_size * shares.share_size  # draws
        # At most half a window ahead; at least what the decoder needs in order to yield.
        self._ahead = max(min(options.prefetch, share_of_window // (2 * shares.longest)), decoder.lookahead + 1)
        self._producer: Producer[Batch] | None = None  # of the current iteration
        self._taken = 0  # micro-batches, by that iteration

    def __iter__(self) -> Generator[Batch, None, None]:
        """Yield batches in order, and raise an error of the background thread in the place of its batch.

        Raises StallError when the consumer has waited for `stall_timeout` seconds.
        """
        draw, self._taken = self._start, 0
        try:
            while True:
                if self._producer is None:
                    self._producer = self._produce(draw)
                batch = self._take(self._producer)
                if batch is None:
                    return
                draw, self._taken = batch.position, self._taken + 1
                yield batch
        finally:
            self._stop(self._stall_timeout)

    @contextmanager
    def released(self) -> Iterator[None]:
        """Stop making batches while the block lasts, so that another decoder can use this one's memory.

        For use between two steps of an iteration, which continues afterwards with the same batches: those that were
        made ahead are made again. Raises StallError if the background thread does not end in time.
        """
        if self._taken % len(self._shares.micro_batches):
            raise RuntimeError("a stream can be released only between two steps, not between two micro-batches of one")
        if not self._stop(self._stall_timeout):
            raise self._stalled()
        yield

    def _produce(self, start: int) -> Producer[Batch]:
        """Start to make batches from draw `start` on."""
        own = self._cuda_stream
        if own is None:
            return Producer(partial(self._batches, start), self._ahead)
        consumer = torch.cuda.current_stream(self._device)

        def batches(free: threading.Semaphore, stop: StopEvent) -> Iterator[Batch]:
            with torch.cuda.stream(own):
                for batch in self._batches(start, free, stop):
                    own.synchronize()  # here, so that the consumer need not wait
                    for tensor in (batch.images, batch.keys, batch.distances):
                        tensor.record_stream(consumer)
                    yield batch

        return Producer(batches, self._ahead)

    def _take(self, producer: Producer[Batch]) -> Batch | None:
        """Take the next batch. Raises StallError after the timeout, which starts again at the end of a pause."""
        since = time.monotonic()
        while (left := max(since, self._samples.store.paused_until()) + self._stall_timeout - time.monotonic()) > 0:
            with suppress(queue.Empty):
                return producer.take(left)
        self._stop(timeout_s=0)
        raise self._stalled()

    def _stalled(self) -> StallError:
        return StallError(
            f"no batch for {self._stall_timeout:g} seconds while {self._progress.activity()}; check what that is "
            "waiting for, or raise data.stall_timeout"
        )

    def _stop(self, timeout_s: float) -> bool:
        """End the background thread; returns whether it has ended in time."""
        producer, self._producer = self._producer, None
        return producer is None or producer.stop(timeout_s)

    def _batches(self, start: int, free: threading.Semaphore, stop: StopEvent) -> Iterator[Batch]:
        in_decoder: deque[tuple[MicroBatch, ReadStats | None]] = deque()
        numbered = self._draws(start, stop)

        def decoding() -> str:
            if not in_decoder:
                return "starting the decoder"
            draws = in_decoder[0][0].draws
            return f"decoding draws {draws[0]} to {draws[-1]}"

        def encoded() -> Iterator[Encoded]:
            for planned, draws in numbered:
                free.acquire()
                if stop.done():
                    return
                first = int(draws[0]) // self._shares.batch_size * self._shares.batch_size  # of the step
                side = self._side_at(first) if self._side_at else None
                micro_batch, images = self._samples.read(planned.window, draws, side)
                in_decoder.append((micro_batch, planned.read_stats))
                self._progress.activity = decoding
                yield images

        self._progress.activity = decoding
        try:
            for decoded in self._decoder(encoded()):
                micro_batch, read_stats = in_decoder.popleft()
                self._samples.replace_undecodable(micro_batch, decoded)
                yield self._batch(decoded.images, micro_batch, read_stats)
                self._progress.activity = decoding
        finally:
            numbered.close()  # ends the planning thread at once, even while an error's traceback holds these frames
            self._samples.store.close()

    def _draws(self, begin: int, stop: StopEvent) -> Generator[tuple[PlannedWindow, NDArray[np.int64]], None, None]:
        """The window and draw numbers of each micro-batch from draw `begin` on; windows are planned one ahead.

        Reads are announced a stretch ahead, beyond the window's end as soon as the next window is planned.
        """
        total, length = self._plan.draws, self._plan.window_length

        def prefetch(number: int) -> WindowPrefetch | None:
            in_plan = number * length < total
            return WindowPrefetch(self._plan, number, stop, self._read_planner) if in_plan else None

        announcer = ReadAnnouncer(self._samples.store.prefetch, begin)
        ahead = prefetch(begin // length) if begin < total else None
        try:
            for first in range(begin, total, self._shares.batch_size):
                if ahead and (first % length == 0 or first == begin):
                    self._progress.activity = partial("planning window {}".format, first // length)
                    planned = ahead.result()
                    announcer.add(planned)
                    ahead = prefetch(first // length + 1)
                for offset, end in self._shares.micro_batches:
                    draws = np.arange(first + offset, min(first + end, total))
                    if len(draws):
                        if ahead and (following := ahead.result_if_done()):
                            announcer.add(following)
                        announcer.use(int(draws[-1]))
                        yield planned, draws
        finally:
            stop.set()
            if ahead:
                ahead.join()

    def _batch(self, images: torch.Tensor, micro_batch: MicroBatch, read_stats: ReadStats | None) -> Batch:
        self._progress.activity = _copying
        draws, batch_size = micro_batch.draws, self._shares.batch_size
        keys = hash64(self._seed, draws, STREAM_MASK).view(np.int64)
        images = self._to_device(images)
        return Batch(
            images=self._augment_batch(images, draws) if self._augment_batch else images,
            draws=draws,
            keys=self._to_device(torch.from_numpy(keys)),
            sample_ids=micro_batch.sample_ids,
            labels=self._index.label[micro_batch.sample_ids],
            distances=self._to_device(torch.from_numpy(micro_batch.distances)),
            bad=tuple(sorted(micro_batch.bad, key=lambda bad: bad.draw)),
            window=micro_batch.window,
            read_stats=read_stats,
            position=(int(draws[0]) // batch_size + 1) * batch_size,
        )

    def _to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        if self._device.type == "cuda" and not tensor.is_cuda:
            tensor = tensor.pin_memory()
        return tensor.to(self._device, non_blocking=True)


def _copying() -> str:
    return "copying to the device"
