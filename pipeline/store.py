"""Bytes of samples, checked against the index at every read: the store protocol, and the store of local shards."""

from __future__ import annotations

import itertools
import math
import os
import threading
import weakref
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from mimcl.pipeline.files import DataError
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.open_shards import OPEN_SHARDS, OpenShard
from mimcl.pipeline.read_plan import ReadPlan, plan_reads
from mimcl.pipeline.read_pool import ReadPool
from mimcl.pipeline.sources.names import to_fs

# Of a longer range the kernel would read ahead only the beginning: this is as much as the device takes at once.
_ADVICE_BYTES = 128 << 10
_owners = itertools.count()  # of open shards, a number for each store


class Defect(NamedTuple):
    """Why a sample is bad. A shard that is missing is an error instead."""

    key: str
    shard: str  # file name
    reason: str


class Store(Protocol):
    """Reads samples of one split, in one thread at a time."""

    @property
    def wants_read_plans(self) -> bool:
        """Whether `prefetch` helps even if the samples are not ordered by shard."""

    def read(self, sample_ids: NDArray[np.int64]) -> list[NDArray[np.uint8] | Defect]:
        """The image bytes of each sample, or why it is bad. Raises DataError for a shard that cannot be read."""

    def plan_reads(self, sample_ids: NDArray[np.int64]) -> ReadPlan:
        """Plan for `prefetch` what to read for these samples, assuming that nothing is cached."""

    def prefetch(self, reads: ReadPlan) -> None:
        """Read ahead what will be needed soon, after the reads of earlier calls; returns at once."""

    def activity(self) -> str:
        """What is being read, or was read last, as in "reading sample 000000042 of train-000000.tar"."""

    def paused_until(self) -> float:
        """When the last pause that a server asked for ends or ended: time.monotonic(), -inf without one."""

    def close(self) -> None:
        """Stop reading ahead. The store may be used again."""


def defect_of(index: ShardIndex, sample_id: int, reason: str) -> Defect:
    """`reason` with the sample's key and shard."""
    return Defect(index.key(sample_id), Path(index.shards[index.shard[sample_id]]["name"]).name, reason)


class ShardStore:
    """Reads samples of local shards, which all stores of a process keep open together (see OPEN_SHARDS)."""

    wants_read_plans = False  # reads at random are best left to the kernel

    def __init__(self, index: ShardIndex) -> None:
        self._index = index
        self._advising: threading.Thread | None = None
        self._owner = next(_owners)
        weakref.finalize(self, OPEN_SHARDS.close, self._owner).atexit = False
        self._pool = ReadPool()
        self._progress = [0], bytearray(1)  # sample ids of the current or last read, and whether each is finished

    def read(self, sample_ids: NDArray[np.int64]) -> list[NDArray[np.uint8] | Defect]:
        """The image bytes of each sample, or why it is bad: its bytes cannot be read, or differ from the index.

        What the page cache holds is read in this thread, since threads would only compete for the interpreter. The rest
        is read by several threads, so that the device has several requests at once.

        Raises DataError for a shard that is missing, is not a regular file or has another size than in the index, even
        if it became so after it was opened.
        """
        if not len(sample_ids):
            return []
        index, ids, finished = self._index, sample_ids.tolist(), bytearray(len(sample_ids))
        shards, columns = index.shard[sample_ids].tolist(), (index.offset, index.nbytes, index.xxh64)
        places = list(zip(*(column[sample_ids].tolist() for column in columns), strict=True))
        self._progress = ids, finished
        found: dict[int, NDArray[np.uint8] | Defect] = {}
        for number, (shard, place) in enumerate(zip(shards, places, strict=True)):
            cached = self._opened(shard).read_cached(*place)
            if cached is not None:
                found[number], finished[number] = cached, True
        missing = [number for number in range(len(ids)) if number not in found]

        def read_chunk(start: int, stop: int) -> None:
            for number in missing[start:stop]:
                data = self._opened(shards[number]).read(*places[number])
                if isinstance(data, str):
                    # Open the shard again: its size is checked again, and an intact copy may have replaced it.
                    data = self._open(shards[number]).read(*places[number])
                found[number] = defect_of(index, ids[number], data) if isinstance(data, str) else data
                finished[number] = True

        if missing:
            self._pool.run(len(missing), read_chunk)
        return [found[number] for number in range(len(ids))]

    def plan_reads(self, sample_ids: NDArray[np.int64]) -> ReadPlan:
        """Plan the fewest ranges within a limit on the bytes that are not needed."""
        return plan_reads(self._index, sample_ids)

    def prefetch(self, reads: ReadPlan) -> None:
        """Have the kernel read these ranges ahead, in order, after those of earlier calls; returns at once."""
        arguments = reads, self._advising
        self._advising = threading.Thread(target=self._advise, args=arguments, name="advise", daemon=True)
        self._advising.start()

    def _advise(self, reads: ReadPlan, previous: threading.Thread | None) -> None:
        # In its own thread: advice waits for room in the device's queue, about as long as the reading takes.
        if previous:
            previous.join()
        descriptor, opened = -1, -1
        try:
            for shard, start, stop in zip(reads.shard.tolist(), reads.start.tolist(), reads.stop.tolist(), strict=True):
                if shard != opened:
                    if descriptor >= 0:
                        os.close(descriptor)
                        descriptor = -1
                    descriptor, opened = os.open(self._path(shard), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), shard
                for place in range(start, stop, _ADVICE_BYTES):
                    os.posix_fadvise(descriptor, place, min(_ADVICE_BYTES, stop - place), os.POSIX_FADV_WILLNEED)
        except (OSError, AttributeError):  # `read` reports errors; not every system has posix_fadvise
            pass
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    def close(self) -> None:
        """End the threads that read, and close the shards. The store may be used again."""
        self._pool.close()
        OPEN_SHARDS.close(self._owner)

    def paused_until(self) -> float:
        """Files are never paused."""
        return -math.inf

    def activity(self) -> str:
        """The first sample not read yet, which is the one that hangs once all others are read; else the last one."""
        ids, finished = self._progress
        key, shard, _ = defect_of(self._index, ids[finished.find(False)], "")
        return f"reading sample {key} of {shard}"

    def _opened(self, shard: int) -> OpenShard:
        return OPEN_SHARDS.get(self._owner, shard, self._open)

    def _open(self, shard: int) -> OpenShard:
        if not 0 <= shard < len(self._index.shards):
            raise DataError(f"the index of {self._index.root} is damaged (no shard {shard}); pack again")
        return OpenShard(self._path(shard), self._index.shards[shard]["bytes"])

    def _path(self, shard: int) -> Path:
        return self._index.root / to_fs(self._index.shards[shard]["name"])
