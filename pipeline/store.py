"""Bytes of samples, checked against the index at every read: what a store is, and that of local shards."""

from __future__ import annotations

import os
import stat
import threading
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import xxhash
from numpy.typing import NDArray

from mimcl.pipeline.files import DataError
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.read_plan import Reads, plan_reads
from mimcl.pipeline.read_pool import ReadPool

_OPEN_SHARDS = 512  # descriptors kept; of these the usual limit is 1,024 a process. Opening costs microseconds
# Of a longer range the kernel reads only its beginning ahead: as much as the device takes at once.
_ADVISED = 128 << 10


class Defect(NamedTuple):
    """Why a sample is bad; never for want of its shard, which is an error."""

    key: str
    shard: str  # file name
    reason: str


class Store(Protocol):
    """Reads samples of one split, in one thread at a time."""

    wants_reads: bool  # told by `expect`, in whatever order the samples are

    def read(self, sample_ids: NDArray[np.int64]) -> list[NDArray[np.uint8] | Defect]:
        """The image bytes of each sample, or why it is bad. Raises DataError for a shard that cannot be had."""

    def plan(self, sample_ids: NDArray[np.int64]) -> Reads:
        """What to read for these samples, as `expect` takes it, where nothing of it is here."""

    def expect(self, reads: Reads) -> None:
        """These will be needed soon, in the order in which they are expected; returns at once."""

    def defect(self, sample_id: int, reason: str) -> Defect:
        """`reason` with the sample's key and shard."""

    def reading(self) -> str:
        """What is being read, or was last."""

    def close(self) -> None:
        """Nothing more is read ahead."""


def defect_of(index: ShardIndex, sample_id: int, reason: str) -> Defect:
    """`reason` with the sample's key and shard."""
    return Defect(index.key(sample_id), Path(index.shards[index.shard[sample_id]]["name"]).name, reason)


class ShardStore:
    """Reads samples of local shards.

    Not through a memory map: where the disk fails or a file is truncated, touching a map kills the process.
    """

    wants_reads = False  # unless they are in order: what is read at random is best left to the kernel

    def __init__(self, index: ShardIndex) -> None:
        self._index = index
        self._advising: threading.Thread | None = None
        self._kept = lru_cache(maxsize=_OPEN_SHARDS)(self._open)
        self._pool = ReadPool()
        self._progress = [0], bytearray(1)  # samples of the read that is going on or was last; whether each is finished

    def read(self, sample_ids: NDArray[np.int64]) -> list[NDArray[np.uint8] | Defect]:
        """The image bytes of each sample, or why it is bad: its bytes cannot be read, or are not those of the index.

        What the page cache holds is read in this thread, since threads would only compete for the interpreter; what
        has to come from the device, by several threads, so that it has several requests at once.

        Raises DataError for a shard that is missing, no regular file or of another size than the index says, also
        where it became so since it was opened.
        """
        if not len(sample_ids):
            return []
        index, ids, finished = self._index, sample_ids.tolist(), bytearray(len(sample_ids))
        shards, columns = index.shard[sample_ids].tolist(), (index.offset, index.nbytes, index.xxh64)
        places = list(zip(*(column[sample_ids].tolist() for column in columns), strict=True))
        self._progress = ids, finished
        found: list[NDArray[np.uint8] | Defect | None] = []
        for number, (shard, place) in enumerate(zip(shards, places, strict=True)):
            found.append(self._kept(shard).read_cached(*place))
            finished[number] = found[-1] is not None
        missing = [number for number, data in enumerate(found) if data is None]

        def read_chunk(start: int, stop: int) -> None:
            for number in missing[start:stop]:
                data = self._kept(shards[number]).read(*places[number])
                if isinstance(data, str):
                    # Opening the shard again looks at it again; and its place may have been taken by a sound copy.
                    data = self._open(shards[number]).read(*places[number])
                found[number] = self.defect(ids[number], data) if isinstance(data, str) else data
                finished[number] = True

        if missing:
            self._pool.run(len(missing), read_chunk)
        return found

    def plan(self, sample_ids: NDArray[np.int64]) -> Reads:
        """The fewest ranges, with a limit on what of them is not needed."""
        return plan_reads(self._index, sample_ids)

    def expect(self, reads: Reads) -> None:
        """Has the kernel read these ranges ahead, in order, after those of the call before; returns at once."""
        arguments = reads, self._advising
        self._advising = threading.Thread(target=self._advise, args=arguments, name="advise", daemon=True)
        self._advising.start()

    def _advise(self, reads: Reads, before: threading.Thread | None) -> None:
        # A thread of its own: advice waits for room in the device's queue, about as long as the reading takes.
        if before:
            before.join()
        descriptor, opened = -1, -1
        try:
            for shard, start, stop in zip(reads.shard.tolist(), reads.start.tolist(), reads.stop.tolist(), strict=True):
                if shard != opened:
                    if descriptor >= 0:
                        os.close(descriptor)
                        descriptor = -1
                    descriptor, opened = os.open(self._path(shard), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), shard
                for place in range(start, stop, _ADVISED):
                    os.posix_fadvise(descriptor, place, min(_ADVISED, stop - place), os.POSIX_FADV_WILLNEED)
        except (OSError, AttributeError):  # whoever reads says what is wrong; not every system takes advice
            pass
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    def close(self) -> None:
        """End the threads that read; advice that was given needs no taking back. The store may be used again."""
        self._pool.close()

    def defect(self, sample_id: int, reason: str) -> Defect:
        """`reason` with the sample's key and shard."""
        return defect_of(self._index, sample_id, reason)

    def reading(self) -> str:
        """The first sample that is not read yet: once all others are, the one whose read hangs. Else the last one."""
        ids, finished = self._progress
        key, shard, _ = self.defect(ids[finished.find(False)], "")
        return f"reading sample {key} of {shard}"

    def _open(self, shard: int) -> _Shard:
        if not 0 <= shard < len(self._index.shards):
            raise DataError(f"the index of {self._index.root} is damaged: there is no shard {shard}; pack again")
        return _Shard(self._path(shard), self._index.shards[shard]["bytes"])

    def _path(self, shard: int) -> Path:
        return self._index.root / self._index.shards[shard]["name"]


class _Shard:
    """An open shard, closed with the last reference to it."""

    def __init__(self, path: Path, size: int) -> None:
        self._path, self._size, self._descriptor = path, size, None
        self._has_nowait = True  # whether its file system can read without waiting for the device
        try:
            regular = stat.S_ISREG(os.stat(path).st_mode)  # before it is opened: a pipe would wait for a writer
            if regular:
                self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                found = os.fstat(self._descriptor).st_size
        except OSError as error:
            raise DataError(f"shard {path} cannot be read ({error.strerror}); restore it or pack again") from None
        if not regular:
            raise DataError(f"shard {path} is not a regular file; restore it or pack again")
        if found != size:
            raise DataError(f"shard {path} has {found:,} bytes, the index says {size:,}; restore it or pack again")

    def __del__(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)

    def read_cached(self, offset: int, nbytes: int, xxh64: int) -> NDArray[np.uint8] | None:
        """The bytes with that hash; None where they are not in the page cache, or where something is wrong."""
        self._require_within(offset, nbytes)
        if not self._has_nowait:
            return None
        data = np.empty(nbytes, np.uint8)
        try:
            count = os.preadv(self._descriptor, [data], offset, os.RWF_NOWAIT)
        except BlockingIOError:  # not cached
            return None
        except OSError:  # not on this file system, or unreadable
            self._has_nowait = False
            return None
        return data if count == nbytes and xxhash.xxh64_intdigest(data) == xxh64 else None

    def read(self, offset: int, nbytes: int, xxh64: int) -> NDArray[np.uint8] | str:
        """The bytes with that hash, or why there are none."""
        self._require_within(offset, nbytes)
        try:
            data = os.pread(self._descriptor, nbytes, offset)
        except OSError as error:
            return f"its bytes cannot be read ({error.strerror})"
        if len(data) < nbytes:  # of a regular file: the rest is beyond its end, or fails
            return f"only {len(data):,} of its {nbytes:,} bytes can be read"
        if xxhash.xxh64_intdigest(data) != xxh64:
            return "its bytes do not match the index"
        return np.frombuffer(data, np.uint8)

    def _require_within(self, offset: int, nbytes: int) -> None:
        if not 0 <= offset < offset + nbytes <= self._size:
            raise DataError(f"the index is damaged: it has a sample outside of {self._path}; pack again")
