"""The stream: plan -> draws -> bytes -> decode -> Batch, a pure function of the draw number made ahead by a thread."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from mimcl.pipeline.progress import Stage, StallError
from mimcl.pipeline.read_plan import ReadFigures, ReadPlanner
from mimcl.pipeline.substitutes import BadSample, Part, Samples
from mimcl.pipeline.window_prefetch import Ahead, Announced, Ended, Planned


@dataclass(frozen=True)
class Batch:
    """A rank's micro-batch of n draws, in order of their numbers."""

    images: torch.Tensor  # uint8, (n, 3, H, W), on the device
    draws: NDArray[np.int64]
    keys: torch.Tensor  # int64 (n,), on the device: the hash that mask noise is made from
    sample_ids: NDArray[np.int64]  # with the substitutes of bad samples, of which the window does not know
    labels: NDArray[np.int32]
    distances: torch.Tensor  # float32 (n,), on the device; NaN without prototypes
    bad: tuple[BadSample, ...]  # in order of the draws; a draw's in the order they were tried
    window: Window
    reads: ReadFigures | None  # of that window, on this machine; None where reads are not planned
    position: int  # where the stream goes on once the step of this micro-batch is done


@dataclass(frozen=True)
class ReadOptions:
    """How a stream reads: how far ahead, in what order, and how long its consumer waits for a batch."""

    prefetch: int = DataConfig.prefetch  # micro-batches
    ordered: bool = False  # the plan's windows are in the order of the shards
    stall_timeout: float = DataConfig.stall_timeout  # seconds


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
    ) -> None:
        """`augment_batch(images, draws)` changes decoded images on the device; the thread that makes batches calls it.

        Reads are planned and announced to the store if the windows are ordered by shard, or if the store wants it.
        """
        if start % shares.batch_size:
            raise ValueError(f"a stream must start at a multiple of the batch size {shares.batch_size} (draw {start})")
        if plan.window_length % shares.batch_size:
            raise ValueError(
                f"a window ({plan.window_length} draws) must be a multiple of the batch size {shares.batch_size}"
            )
        self._plan, self._index, self._decoder, self._shares = plan, index, decoder, shares
        self._stage = Stage()
        self._samples = Samples(plan, index, transform, self._stage)
        self._seed, self._start, self._stall_timeout = seed, start, options.stall_timeout
        store = self._samples.store
        self._reads = ReadPlanner(index, store.plan, shares) if options.ordered or store.wants_reads else None
        self._device, self._augment_batch = torch.device(device), augment_batch
        # Copies and DALI's outputs go through a CUDA stream of their own, beside the one that trains.
        self._side = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
        share_of_window = plan.window_length // shares.batch_size * shares.share_size  # draws
        # At most half a window ahead; at least what the decoder needs in order to yield.
        self._ahead = max(min(options.prefetch, share_of_window // (2 * shares.longest)), decoder.lookahead + 1)
        self._producer: Producer[Batch] | None = None  # of the iteration under way
        self._taken = 0  # micro-batches, by that iteration

    def __iter__(self) -> Iterator[Batch]:
        """Batches in order; errors of the background thread come out here, where the batch would have.

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
        """While the block lasts, nothing is made ahead, and the decoder's memory is free for another decoder.

        For use between two steps of an iteration, which goes on afterwards with the same batches: those that were made
        ahead are made again. Raises StallError where what is being made does not end.
        """
        if self._taken % len(self._shares.micro_batches):
            raise RuntimeError("a stream can be released only between two steps, not between two micro-batches of one")
        if not self._stop(self._stall_timeout):
            raise self._stalled()
        yield

    def _produce(self, start: int) -> Producer[Batch]:
        """Begins to make batches from draw `start` on."""
        consumer = torch.cuda.current_stream(self._device) if self._side else None

        def batches(free: threading.Semaphore, ended: Ended) -> Iterator[Batch]:
            with torch.cuda.stream(self._side):  # does nothing for None
                for batch in self._batches(start, free, ended):
                    if self._side:  # this thread waits, so that the consumer need not
                        self._side.synchronize()
                        for tensor in (batch.images, batch.keys, batch.distances):
                            tensor.record_stream(consumer)
                    yield batch

        return Producer(batches, self._ahead)

    def _take(self, producer: Producer[Batch]) -> Batch | None:
        try:
            return producer.take(self._stall_timeout)
        except queue.Empty:
            self._stop(timeout_s=0)
            raise self._stalled() from None

    def _stalled(self) -> StallError:
        return StallError(
            f"no batch came for {self._stall_timeout:g} seconds, while {self._stage.words()}; look at what that waits "
            "for, or raise data.stall_timeout"
        )

    def _stop(self, timeout_s: float) -> bool:
        """End the background thread; returns whether it has ended in time."""
        producer, self._producer = self._producer, None
        return producer is None or producer.stop(timeout_s)

    def _batches(self, start: int, free: threading.Semaphore, ended: Ended) -> Iterator[Batch]:
        waiting: deque[tuple[Part, ReadFigures | None]] = deque()
        numbered = self._draws(start, ended)

        def decoding() -> str:
            if not waiting:
                return "starting the decoder"
            draws = waiting[0][0].draws
            return f"decoding draws {draws[0]} to {draws[-1]}"

        def encoded() -> Iterator[Encoded]:
            for planned, draws in numbered:
                free.acquire()
                if ended.done():
                    return
                part, images = self._samples.read(planned.window, draws)
                waiting.append((part, planned.figures))
                self._stage.words = decoding
                yield images

        self._stage.words = decoding
        try:
            for decoded in self._decoder(encoded()):
                part, figures = waiting.popleft()
                self._samples.repair(part, decoded)
                yield self._batch(decoded.images, part, figures)
                self._stage.words = decoding
        finally:
            numbered.close()  # ends the planning thread at once, whoever still holds the error's frames
            self._samples.store.close()

    def _draws(self, begin: int, ended: Ended) -> Iterator[tuple[Planned, NDArray[np.int64]]]:
        """The window and draw numbers of each micro-batch from draw `begin` on; windows are planned one ahead.

        What will be read is announced a stretch ahead, into the next window as soon as that is planned.
        """
        total, length = self._plan.draws, self._plan.window_length

        def plan_ahead(number: int) -> Ahead | None:
            return Ahead(self._plan, number, ended, self._reads) if number * length < total else None

        announced = Announced(self._samples.store.expect, begin)
        ahead = plan_ahead(begin // length) if begin < total else None
        try:
            for first in range(begin, total, self._shares.batch_size):
                if first % length == 0 or first == begin:
                    self._stage.words = partial("planning window {}".format, first // length)
                    planned = ahead.result()
                    announced.add(planned)
                    ahead = plan_ahead(first // length + 1)
                for start, stop in self._shares.micro_batches:
                    draws = np.arange(first + start, min(first + stop, total))
                    if len(draws):
                        if ahead and (following := ahead.ready()):
                            announced.add(following)
                        announced.use(int(draws[-1]))
                        yield planned, draws
        finally:
            ended.set()
            if ahead:
                ahead.join()

    def _batch(self, images: torch.Tensor, part: Part, figures: ReadFigures | None) -> Batch:
        self._stage.words = _copying
        keys = hash64(self._seed, part.draws, STREAM_MASK).view(np.int64)
        images = self._to_device(images)
        return Batch(
            images=self._augment_batch(images, part.draws) if self._augment_batch else images,
            draws=part.draws,
            keys=self._to_device(torch.from_numpy(keys)),
            sample_ids=part.sample_ids,
            labels=self._index.label[part.sample_ids],
            distances=self._to_device(torch.from_numpy(part.distances)),
            bad=tuple(sorted(part.bad, key=lambda bad: bad.draw)),
            window=part.window,
            reads=figures,
            position=(int(part.draws[0]) // self._shares.batch_size + 1) * self._shares.batch_size,
        )

    def _to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        if self._device.type == "cuda" and not tensor.is_cuda:
            tensor = tensor.pin_memory()
        return tensor.to(self._device, non_blocking=True)


def _copying() -> str:
    return "copying to the device"
