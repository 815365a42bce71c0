"""Samples of remote shards on this machine's disk, shared by all its processes.

A shard has one sparse file: its bytes at their own places, and behind them a byte a sample that says whether they have
come. It is named by URL, size and etag, so that another object never meets the samples of this one. A sample's byte is
set after its bytes were compared with the index and written; whoever reads compares them again. So a process may be
killed anywhere, and files may be removed at any time: what is missing or wrong is fetched again.
"""

from __future__ import annotations

import errno
import fcntl
import math
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from mimcl.pipeline.cache_dir import cache_folder
from mimcl.pipeline.files import DataError
from mimcl.pipeline.remote.remote_folder import Stat

DEFAULT_LIMIT = 50.0  # GB
_SUFFIX = ".shard"
_LOCK_WAIT = 0.02  # seconds between looks at what another process holds
_HANGS = 5.0  # seconds after which who adds up sizes is no longer waited for
_MARK_AGAIN = 10.0  # seconds for which a shard counts as needed just now
_ATTEMPTS = 3
_FULL = (errno.ENOSPC, errno.EDQUOT)
_F_OFD_SETLK = getattr(fcntl, "F_OFD_SETLK", 37)  # Linux: locks that belong to an open file, not to a process


def cache_limit() -> int:
    """MIMCL_CACHE_GB in bytes. Raises DataError."""
    text = os.environ.get("MIMCL_CACHE_GB", "")
    try:
        gigabytes = float(text) if text else DEFAULT_LIMIT
    except ValueError:
        gigabytes = math.nan
    if not 0 < gigabytes < math.inf:
        raise DataError(f"MIMCL_CACHE_GB is {text!r:.40}; it must be a number of gigabytes above 0")
    return int(gigabytes * 1e9)


class ShardCache:
    """The folder of all cached shards, kept below `limit` bytes by removing those whose need is longest ago."""

    def __init__(self, folder: Path | None = None, limit: int | None = None) -> None:
        self.folder = cache_folder() / "shards" if folder is None else folder
        self.limit = cache_limit() if limit is None else limit
        self._guard, self._written = threading.Lock(), self.limit  # written since the sizes were last added up
        self._writing = 0  # bytes for which there is room already
        self._marked: dict[str, float] = {}

    @staticmethod
    def key(url: str, stat: Stat) -> str:
        return xxhash.xxh128_hexdigest(f"{url}\n{stat.size}\n{stat.etag}".encode())

    def find(self, key: str, size: int, samples: int) -> CachedShard | None:
        """A shard of that many bytes and samples; None if it is not there. Not to be kept: see `_remove`."""
        try:
            return CachedShard(self.folder / f"{key}{_SUFFIX}", size, samples, 0)
        except OSError:
            return None

    def open(self, key: str, size: int, samples: int) -> CachedShard:
        """The same, empty if it was not there. Raises DataError."""
        path = self.folder / f"{key}{_SUFFIX}"
        with self.errors():
            for attempt in range(_ATTEMPTS):
                try:
                    self.folder.mkdir(parents=True, exist_ok=True)
                    return CachedShard(path, size, samples, os.O_CREAT)
                except (FileNotFoundError, FileExistsError):  # which mkdir raises if the folder is removed meanwhile
                    if attempt == _ATTEMPTS - 1:
                        raise

    def need(self, key: str) -> None:
        """Marks a shard, if it is there, as needed now or soon."""
        now = time.monotonic()
        if now - self._marked.get(key, -math.inf) < _MARK_AGAIN:
            return
        self._marked[key] = now
        with suppress(OSError):  # not there, or somebody else's
            os.utime(self.folder / f"{key}{_SUFFIX}")

    def keep(self, nbytes: int, write: Callable[[], None]) -> None:
        """Has `write` write that many bytes, after making room for them.

        Nothing is written if they are more than may be kept beside what other threads are writing. Raises DataError
        where the disk takes no more though everything else was removed.
        """
        with self._guard:
            if self._writing + nbytes > self.limit:
                return
            self._writing += nbytes
        try:
            self._make_room(nbytes)
            with self.errors():
                try:
                    write()
                except OSError as error:
                    if error.errno not in _FULL:
                        raise
                    self._remove(0)
                    write()
        finally:
            with self._guard:
                self._writing -= nbytes

    def _make_room(self, nbytes: int) -> None:
        with self._guard:
            self._written += nbytes
            if self._written > self.limit // 256:  # adding up costs a look at every file
                self._written = nbytes
                self._remove(self.limit - self._writing)

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Errors of the disk, in one line."""
        try:
            yield
        except OSError as error:
            raise DataError(
                f"the cache {self.folder} cannot be written ({error.strerror}): make room there, name another folder "
                f"in MIMCL_CACHE, or fewer than {self.limit / 1e9:g} GB in MIMCL_CACHE_GB"
            ) from None

    def _remove(self, target: int) -> None:
        """Removes shards until they have no more than `target` bytes on the disk; one process at a time.

        Who has one open goes on reading it, and its room is free once that is closed; who writes to one that is gone
        writes in vain.
        """
        with self.errors(), suppress(FileNotFoundError), _flocked(self.folder):  # nothing is left where it is gone
            found = []
            for entry in os.scandir(self.folder):
                if entry.name.endswith(_SUFFIX):
                    try:
                        known = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    found.append((known.st_mtime_ns, entry.path, known.st_blocks * 512))
            used = sum(nbytes for _, _, nbytes in found)
            for _, path, nbytes in sorted(found):
                if used <= target:
                    break
                with suppress(FileNotFoundError):
                    os.unlink(path)
                used -= nbytes


class CachedShard:
    """An open file of the cache, closed with the last reference to it."""

    def __init__(self, path: Path, size: int, samples: int, flags: int) -> None:
        self._descriptor = -1
        self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | flags, 0o666)
        self._size = size
        if os.fstat(self._descriptor).st_size != size + samples:
            os.ftruncate(self._descriptor, size + samples)

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def have(self, first: int, last: int) -> NDArray[np.bool_]:
        """Whether samples [first, last) of the shard have come."""
        data = os.pread(self._descriptor, last - first, self._size + first)
        return np.frombuffer(data.ljust(last - first, b"\0"), np.bool_)

    def read(self, offset: int, nbytes: int, xxh64: int) -> NDArray[np.uint8] | None:
        """The bytes with that hash; None where they are not here."""
        try:
            data = os.pread(self._descriptor, nbytes, offset)
        except OSError:
            return None
        return np.frombuffer(data, np.uint8) if xxhash.xxh64_intdigest(data) == xxh64 else None

    def write(self, number: int, offset: int, data: bytes | memoryview) -> None:
        """The bytes of a sample of the shard, which have been compared with the index. Raises OSError."""
        _write_all(self._descriptor, data, offset)
        _write_all(self._descriptor, b"\1", self._size + number)

    @contextmanager
    def locked(self, start: int, stop: int, patience: float) -> Iterator[bool]:
        """Whether nobody else of this machine fetches any of these bytes while the block lasts.

        Waits for it, `patience` seconds at most. Who goes on without only does what is done already: so a process that
        hangs holds up nobody for ever.
        """
        deadline = time.monotonic() + patience
        while not (mine := self._lock(fcntl.F_WRLCK, start, stop)) and time.monotonic() < deadline:
            time.sleep(_LOCK_WAIT)
        try:
            yield mine
        finally:
            if mine:
                self._lock(fcntl.F_UNLCK, start, stop)

    def _lock(self, kind: int, start: int, stop: int) -> bool:
        try:
            fcntl.fcntl(
                self._descriptor, _F_OFD_SETLK, struct.pack("hhqqi4x", kind, os.SEEK_SET, start, stop - start, 0)
            )
        except (BlockingIOError, PermissionError):
            return False
        except OSError:  # a file system without locks
            return True
        return True


def _write_all(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    rest = memoryview(data)
    while rest:
        done = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[done:], offset + done


@contextmanager
def _flocked(folder: Path) -> Iterator[None]:
    """No other process removes while the block lasts, unless it hangs: at most too much is removed."""
    held, deadline = os.open(folder, os.O_RDONLY), time.monotonic() + _HANGS
    try:
        with suppress(OSError):  # a file system without locks
            while time.monotonic() < deadline:
                with suppress(BlockingIOError):
                    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                time.sleep(_LOCK_WAIT)
        yield
    finally:
        os.close(held)
