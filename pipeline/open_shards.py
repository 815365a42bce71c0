"""The shards that a process has open: one limited number for all stores, the least recently used closed first."""

from __future__ import annotations

import os
import resource
import stat
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from mimcl.pipeline.files import DataError, open_descriptor, remedy

_RESTORE = "restore it or pack again"
# Opening a shard takes microseconds. More open files would give others numbers above 1,023, which select() cannot take.
_MOST = 512


def open_shards_limit() -> int:
    """How many shards may be open: a quarter of the limit of open files, which leaves room for torch and sockets."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST if limit == resource.RLIM_INFINITY else max(1, min(_MOST, limit // 4))


class OpenShard:
    """A shard open for reading, closed with the last reference to it: never while it is being read.

    Not a memory map: if the disk fails or a file is truncated, touching a map kills the process.
    """

    def __init__(self, path: Path, size: int) -> None:
        self._path, self._size, self._descriptor = path, size, -1
        # Whether its file system can read without waiting for the device; macOS cannot.
        self._has_nowait = hasattr(os, "RWF_NOWAIT")
        try:
            regular = stat.S_ISREG(os.stat(path).st_mode)  # before it is opened: opening a pipe waits for a writer
            if regular:
                self._descriptor = open_descriptor(path, os.O_RDONLY)
                found = os.fstat(self._descriptor).st_size
        except OSError as error:
            raise DataError(f"shard {path} cannot be read ({error.strerror}); {remedy(error, _RESTORE)}") from None
        if not regular:
            raise DataError(f"shard {path} is not a regular file; {_RESTORE}")
        if found != size:
            raise DataError(f"shard {path} has {found:,} bytes, the index says {size:,}; {_RESTORE}")

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def read_cached(self, offset: int, nbytes: int, xxh64: int) -> NDArray[np.uint8] | None:
        """The bytes with that hash; None if they are not in the page cache, or if something is wrong."""
        self._require_within(offset, nbytes)
        if not self._has_nowait:
            return None
        data = np.empty(nbytes, np.uint8)
        try:
            count = os.preadv(self._descriptor, [data.data], offset, os.RWF_NOWAIT)
        except BlockingIOError:  # not cached
            return None
        except OSError:  # not supported by this file system, or unreadable
            self._has_nowait = False
            return None
        return data if count == nbytes and xxhash.xxh64_intdigest(data.data) == xxh64 else None

    def read(self, offset: int, nbytes: int, xxh64: int) -> NDArray[np.uint8] | str:
        """The bytes with that hash, or why there are none."""
        self._require_within(offset, nbytes)
        try:
            data = os.pread(self._descriptor, nbytes, offset)
        except OSError as error:
            return f"its bytes cannot be read ({error.strerror})"
        if len(data) < nbytes:  # in a regular file: the rest is beyond its end, or cannot be read
            return f"only {len(data):,} of its {nbytes:,} bytes can be read"
        if xxhash.xxh64_intdigest(data) != xxh64:
            return "its bytes do not match the index"
        return np.frombuffer(data, np.uint8)

    def _require_within(self, offset: int, nbytes: int) -> None:
        if not 0 <= offset < offset + nbytes <= self._size:
            raise DataError(f"the index is damaged (a sample outside of {self._path}); pack again")


class OpenShards:
    """Open shards by (owner, number), for all threads of a process; those of each store have an owner of their own."""

    def __init__(self, limit: Callable[[], int] = open_shards_limit) -> None:
        self._limit = limit
        self._reset()

    def get(self, owner: int, number: int, open_shard: Callable[[int], OpenShard]) -> OpenShard:
        """The shard `number` of that owner, opened by `open_shard(number)` unless it is open."""
        key = owner, number
        try:  # without the lock, which takes longer than the rest: both calls are atomic
            found = self._shards[key]
            self._shards.move_to_end(key)
            return found
        except KeyError:  # not open, or closed between the two
            pass
        opened = open_shard(number)  # without the lock: a file server may not answer for minutes
        limit, closing = self._limit(), []
        with self._lock:
            self._shards[key] = opened
            while len(self._shards) > limit:
                closing.append(self._shards.popitem(last=False))
        return opened

    def close(self, owner: int) -> None:
        """Close all shards of that owner, each when nobody reads it any more."""
        with self._lock:
            closing = [self._shards.pop(key) for key in list(self._shards) if key[0] == owner]
        del closing

    def _reset(self) -> None:
        # Reentrant, since the garbage collector may close the shards of a store at any point.
        self._lock, self._shards = threading.RLock(), OrderedDict[tuple[int, int], OpenShard]()


OPEN_SHARDS = OpenShards()
# In a forked process another thread may have left the lock taken; descriptors are the process's own copies.
os.register_at_fork(after_in_child=OPEN_SHARDS._reset)
