"""Cache samples of remote shards on the local disk, shared by all processes of the machine.

Each shard has one sparse file: its bytes at their original offsets, followed by one flag byte per sample. The file is
named by a hash of URL, size and etag, so that a changed object gets a new file. A sample's flag is set after its bytes
were checked against the index and written; readers check them again. So a process may be killed at any point and files
may be removed at any time: what is missing or damaged is fetched again.
"""

from __future__ import annotations

import errno
import fcntl
import math
import os
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from mimcl.pipeline.cache_dir import cache_dir
from mimcl.pipeline.files import DataError, open_descriptor, remedy
from mimcl.pipeline.folder_lock import FolderLock
from mimcl.pipeline.remote.remote_folder import Stat

DEFAULT_LIMIT_GB = 50.0
_SUFFIX = ".shard"
_LOCK_POLL_S = 0.02  # between attempts to take a lock
_REMOVE_LOCK_TIMEOUT_S = 5.0  # then remove without the lock: its holder may hang
_TOUCH_INTERVAL_S = 10.0  # between updates of a shard's time of last use
_RETRIES = 2
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
# Locks of an open file, not of a process, which closing any of its descriptors would release. None: there are none.
_F_OFD_SETLK: int | None = getattr(fcntl, "F_OFD_SETLK", 37 if sys.platform == "linux" else None)


def cache_limit() -> int:
    """Return the limit from MIMCL_CACHE_GB, in bytes. Raises DataError."""
    text = os.environ.get("MIMCL_CACHE_GB", "")
    try:
        gigabytes = float(text) if text else DEFAULT_LIMIT_GB
    except ValueError:
        gigabytes = math.nan
    if not 0 < gigabytes < math.inf:
        raise DataError(f"MIMCL_CACHE_GB is {text!r:.40}; it must be a number of gigabytes above 0")
    return int(gigabytes * 1e9)


class ShardCache:
    """The folder of all cached shards, kept below `limit` bytes by removing the least recently used."""

    def __init__(self, folder: Path | None = None, limit: int | None = None) -> None:
        self.folder = cache_dir() / "shards" if folder is None else folder
        self.limit = cache_limit() if limit is None else limit
        self._guard, self._written = threading.Lock(), self.limit  # bytes written since the sizes were last summed
        self._writing = 0  # bytes for which room has been made
        self._touched: dict[str, float] = {}  # time.monotonic() by key

    @staticmethod
    def key(url: str, stat: Stat) -> str:
        return xxhash.xxh128_hexdigest(f"{url}\n{stat.size}\n{stat.etag}".encode())

    def find(self, key: str, size: int, samples: int) -> CachedShard | None:
        """Open a cached shard, or return None. Close it soon: see `_remove`."""
        try:
            return CachedShard(self.folder / f"{key}{_SUFFIX}", size, samples, 0)
        except OSError:
            return None

    def open(self, key: str, size: int, samples: int) -> CachedShard:
        """Open a cached shard, creating it if it does not exist. Raises DataError."""

        def create() -> CachedShard:
            self.folder.mkdir(parents=True, exist_ok=True)
            return CachedShard(self.folder / f"{key}{_SUFFIX}", size, samples, os.O_CREAT)

        with self._one_line_errors():
            for _ in range(_RETRIES):
                with suppress(FileNotFoundError, FileExistsError):  # the folder was removed meanwhile
                    return create()
            return create()

    def touch(self, key: str) -> None:
        """Mark a shard, if it is cached, as recently used."""
        now = time.monotonic()
        if now - self._touched.get(key, -math.inf) < _TOUCH_INTERVAL_S:
            return
        self._touched[key] = now
        with suppress(OSError):  # not cached, or owned by another user
            os.utime(self.folder / f"{key}{_SUFFIX}")

    def store(self, nbytes: int, write: Callable[[], None]) -> None:
        """Make room for `nbytes` and call `write` to write them.

        Does nothing if they exceed the limit together with what other threads are writing. Raises DataError if the
        disk is full even after all cached shards were removed.
        """
        with self._guard:
            if self._writing + nbytes > self.limit:
                return
            self._writing += nbytes
        try:
            self._make_room(nbytes)
            with self._one_line_errors():
                try:
                    write()
                except OSError as error:
                    if error.errno not in _DISK_FULL:
                        raise
                    self._remove(0)
                    write()
        finally:
            with self._guard:
                self._writing -= nbytes

    def _make_room(self, nbytes: int) -> None:
        with self._guard:
            self._written += nbytes
            if self._written > self.limit // 256:  # summing stats every file
                self._written = nbytes
                self._remove(self.limit - self._writing)

    @contextmanager
    def _one_line_errors(self) -> Iterator[None]:
        """Turn errors of the disk into a DataError."""
        try:
            yield
        except OSError as error:
            usual = (
                "free some space there, set MIMCL_CACHE to another folder, or set MIMCL_CACHE_GB to less than "
                f"{self.limit / 1e9:g}"
            )
            raise DataError(
                f"the cache {self.folder} cannot be written ({error.strerror}): {remedy(error, usual)}"
            ) from None

    def _remove(self, target: int) -> None:
        """Remove shards until they use at most `target` bytes on disk; one process at a time.

        A process that has a removed shard open can go on reading it; its space is freed when that is closed. What is
        written to a removed shard is lost.
        """
        with self._one_line_errors(), suppress(FileNotFoundError), FolderLock(self.folder) as lock:
            lock.acquire(_REMOVE_LOCK_TIMEOUT_S)  # without the lock, at worst too much is removed
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
    """An open file of the cache, closed when it is garbage collected."""

    def __init__(self, path: Path, size: int, samples: int, flags: int) -> None:
        self._descriptor = -1
        self._descriptor = open_descriptor(path, os.O_RDWR | os.O_NOFOLLOW | flags)
        self._size = size
        if os.fstat(self._descriptor).st_size != size + samples:
            os.ftruncate(self._descriptor, size + samples)

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def is_cached(self, first: int, last: int) -> NDArray[np.bool_]:
        """Return for each of the samples [first, last) of the shard whether it is cached: (last - first,)."""
        data = os.pread(self._descriptor, last - first, self._size + first)
        return np.frombuffer(data.ljust(last - first, b"\0"), np.bool_)

    def read(self, offset: int, nbytes: int, xxh64: int) -> NDArray[np.uint8] | None:
        """Return the bytes, or None if they do not have that hash."""
        try:
            data = os.pread(self._descriptor, nbytes, offset)
        except OSError:
            return None
        return np.frombuffer(data, np.uint8) if xxhash.xxh64_intdigest(data) == xxh64 else None

    def write(self, number: int, offset: int, data: bytes | memoryview) -> None:
        """Write the bytes of a sample, already checked against the index, and its flag. Raises OSError."""
        _write_all(self._descriptor, data, offset)
        _write_all(self._descriptor, b"\1", self._size + number)

    @contextmanager
    def locked(self, start: int, stop: int, timeout: float) -> Iterator[bool]:
        """Lock a byte range against other threads and processes; yield whether that worked within `timeout` seconds.

        Going on without the lock is safe, it only fetches bytes twice: so a process that hangs blocks no other.
        """
        deadline = time.monotonic() + timeout
        while not (acquired := self._lock(fcntl.F_WRLCK, start, stop)) and time.monotonic() < deadline:
            time.sleep(_LOCK_POLL_S)
        try:
            yield acquired
        finally:
            if acquired:
                self._lock(fcntl.F_UNLCK, start, stop)

    def _lock(self, kind: int, start: int, stop: int) -> bool:
        if _F_OFD_SETLK is None:
            return True
        if sys.platform == "darwin":
            flock = struct.pack("qqihh", start, stop - start, 0, kind, os.SEEK_SET)
        else:
            flock = struct.pack("hhqqi4x", kind, os.SEEK_SET, start, stop - start, 0)
        try:
            fcntl.fcntl(self._descriptor, _F_OFD_SETLK, flock)
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
