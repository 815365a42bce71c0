"""Write one shard: a tar of samples in order, and its .idx file for DALI."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import BinaryIO

import xxhash

from mimcl.pipeline.files import atomic_file

IDX_VERSION = "v1.2"  # of DALI's wds2idx
BLOCK = 512  # of a tar
_WRITE_BYTES = 1 << 21  # written at a time
_FLUSH_BYTES = 1 << 24  # flushed to the disk at a time
# Time 0, owner 0, no user names: the same on every machine. Name, size and checksum are filled in.
_HEADER = tarfile.TarInfo("").tobuf(tarfile.USTAR_FORMAT)
_AFTER_NAME, _AFTER_SIZE, _AFTER_CHECKSUM = _HEADER[100:124], _HEADER[135:148], _HEADER[156:]
_CONSTANT_SUM = (
    sum(_AFTER_NAME) + sum(_AFTER_SIZE) + sum(_AFTER_CHECKSUM) + 8 * ord(" ")
)  # the checksum field counts as spaces


class ShardWriter:
    """Append samples to a tar; a thread hashes and writes them while the caller makes the next ones."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = xxhash.xxh128()
        self.nbytes = self._flushed = 0  # nbytes includes what is still in memory
        self.idx: list[str] = []  # one line per sample
        self._parts: list[bytes | memoryview] = []  # to be written next
        self._taken = 0  # bytes of the tar that were given to the thread
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._writing: Future[None] | None = None

    def add(self, members: Sequence[tuple[str, bytes | memoryview]]) -> int:
        """Append one sample's members; return the offset of the first one's data. Raises errors of earlier writes."""
        first = self.nbytes + BLOCK
        self.idx.append(idx_line(first, [(name, len(data)) for name, data in members]))
        for name, data in members:
            self._parts += tar_header(name, len(data)), data, bytes(padding(len(data)))
            self.nbytes += BLOCK + len(data) + padding(len(data))
        if self.nbytes - self._taken >= _WRITE_BYTES:
            self._write()
        return first

    def end(self) -> None:
        """Write the end of the archive, and wait until all is written."""
        final = end_of_archive(self.nbytes)
        self._parts.append(bytes(final))
        self.nbytes += final
        self._write()
        self._wait()

    def close(self) -> None:
        """End the thread, which must not outlive the file."""
        self._pool.shutdown(cancel_futures=True)

    def xxh128(self) -> str:
        """Return the hash of the whole archive, once it has ended."""
        return self._hash.hexdigest()

    def _write(self) -> None:
        """Let the thread write what was added, once it has written what came before: that much is in memory twice."""
        self._wait()
        parts, self._parts, self._taken = self._parts, [], self.nbytes
        self._writing = self._pool.submit(self._write_parts, parts, self.nbytes)

    def _wait(self) -> None:
        if self._writing:
            self._writing.result()

    def _write_parts(self, parts: list[bytes | memoryview], end: int) -> None:
        for part in parts:
            self._hash.update(part)
        self._file.write(b"".join(parts))
        if end - self._flushed >= _FLUSH_BYTES:
            # Start writing to disk in the background, so that little is left for the final fsync.
            if hasattr(os, "posix_fadvise"):  # on Linux, starts writing and returns at once
                self._file.flush()
                os.posix_fadvise(self._file.fileno(), self._flushed, end - self._flushed, os.POSIX_FADV_DONTNEED)
            self._flushed = end


@contextmanager
def new_shard(path: Path) -> Iterator[ShardWriter]:
    """Write a tar, which appears at `path`, followed by its .idx, when the block ends without an error."""
    with atomic_file(path) as file, closing(ShardWriter(file)) as writer:
        yield writer
        writer.end()
    with atomic_file(path.with_suffix(".idx")) as file:
        file.write(idx_text(writer.idx))


def members_of(
    key: str, extension: str, label: int, data: bytes | memoryview, json: bytes = b""
) -> list[tuple[str, bytes | memoryview]]:
    """Return names and contents of a sample's members, in order."""
    members = [(f"{key}.{extension}", data)]
    if label >= 0:
        members.append((f"{key}.cls", b"%d" % label))
    if json:
        members.append((f"{key}.json", json))
    return members


def tar_header(name: str, size: int) -> bytes:
    """Return the 512-byte header of a member as tarfile writes it; `name` is ASCII of at most 100 characters."""
    encoded, digits = name.encode("ascii"), b"%011o" % size
    checksum = b"%06o\0 " % (_CONSTANT_SUM + sum(encoded) + sum(digits))
    return b"".join((encoded.ljust(100, b"\0"), _AFTER_NAME, digits, _AFTER_SIZE, checksum, _AFTER_CHECKSUM))


def padding(size: int) -> int:
    """Return the number of bytes from the end of a member's content to the next header."""
    return -size % BLOCK


def end_of_archive(offset: int) -> int:
    """Return the number of zero bytes after members that end at `offset`: two blocks, up to a whole record."""
    return 2 * BLOCK + -(offset + 2 * BLOCK) % tarfile.RECORDSIZE


def idx_line(offset: int, members: list[tuple[str, int]]) -> str:
    """Return DALI's line for a sample with these members (name, size); the first content is at `offset`."""
    places = []
    for name, size in members:
        places.append(f"{name.split('.')[1]} {offset} {size} {name}")
        offset += size + padding(size) + BLOCK
    return " ".join(places)


def idx_text(lines: list[str]) -> bytes:
    """Return the content of an .idx file."""
    return "\n".join([f"{IDX_VERSION} {len(lines)}", *lines, ""]).encode()
