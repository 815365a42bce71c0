"""Writes one split: tars of samples in order, their .idx files for DALI, and the rows of our index."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path
from typing import Any

import xxhash

from mimcl.pipeline.examine import Header
from mimcl.pipeline.files import DataError, atomic_file
from mimcl.pipeline.index import file_digest, write_index

IDX_VERSION = "v1.2"  # of DALI's wds2idx
BLOCK = 512  # of a tar


class SplitWriter:
    """Starts a new shard before one would grow beyond `shard_bytes`. Keys are sample numbers, nine digits."""

    def __init__(self, folder: Path, split: str, shard_bytes: int) -> None:
        self._folder, self._split, self._shard_bytes = folder, split, shard_bytes
        self._shards: list[dict[str, Any]] = []
        self._rows: list[tuple] = []
        self._shard: _Shard | None = None

    def add(self, name: str, label: int, header: Header, data: bytes, xxh64: int) -> None:
        """Appends one sample; `name` is recorded as where it came from, a label below 0 is none."""
        number = len(self._rows)
        if number >= 10**9:
            raise DataError(f"{self._split} has more than 10^9 images; pack it as several data sets")
        key = f"{number:09d}"
        members = members_of(key, header.extension, label, data)
        records = [tar_header(member, len(it)) + it + bytes(padding(len(it))) for member, it in members]
        if self._shard and self._shard.offset + sum(map(len, records)) > self._shard_bytes:
            self._finish_shard()
        if not self._shard:
            self._shard = _Shard(self._folder / f"{self._split}-{len(self._shards):06d}.tar")
        place = (len(self._shards), self._shard.append(members, records), len(data))
        self._rows.append((key, name, *place, xxh64, header.width, header.height, label))

    def finish(self, classes: list[str]) -> dict[str, Any]:
        """Ends the last shard and writes the index; returns the split's part of dataset.json."""
        if self._shard:
            self._finish_shard()
        path = self._folder / f"{self._split}.arrow"
        return {
            "samples": len(self._rows),
            "fingerprint": write_index(path, self._rows),
            "index_xxh128": file_digest(path),
            "classes": classes,
            "shards": self._shards,
        }

    def close(self) -> None:
        """Lets go of a shard that a failure left unfinished."""
        if self._shard:
            self._shard.file.close()

    def _finish_shard(self) -> None:
        self._shards.append(self._shard.finish())
        self._shard = None


class _Shard:
    """One tar, with the lines of its .idx."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.file = open(path, "wb")  # noqa: SIM115 - open for as long as samples are appended
        self._hash = xxhash.xxh128()
        self._idx: list[str] = []
        self.offset = 0

    def append(self, members: list[tuple[str, bytes]], records: list[bytes]) -> int:
        """Appends one sample's members; returns the offset of the first one's data."""
        first = self.offset + BLOCK
        self._idx.append(idx_line(first, [(name, len(data)) for name, data in members]))
        for record in records:
            self._write(record)
        return first

    def finish(self) -> dict[str, Any]:
        """Ends the tar and writes its .idx; returns the shard's entry in dataset.json."""
        self._write(bytes(end_of_archive(self.offset)))
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        with atomic_file(self._path.with_suffix(".idx")) as file:
            file.write(idx_text(self._idx))
        digest = self._hash.hexdigest()
        return {"name": self._path.name, "bytes": self.offset, "samples": len(self._idx), "xxh128": digest}

    def _write(self, data: bytes) -> None:
        self.file.write(data)
        self._hash.update(data)
        self.offset += len(data)


def members_of(key: str, extension: str, label: int, data: bytes | memoryview) -> list[tuple[str, bytes | memoryview]]:
    """Names and contents of a sample's members, in order."""
    label_member = [(f"{key}.cls", str(label).encode())] if label >= 0 else []
    return [(f"{key}.{extension}", data), *label_member]


def tar_header(name: str, size: int) -> bytes:
    """The 512 bytes in front of a member's content."""
    info = tarfile.TarInfo(name)  # time 0, owner 0, no names: nothing of this machine gets into the bytes
    info.size = size
    return info.tobuf(tarfile.USTAR_FORMAT)


def padding(size: int) -> int:
    """Bytes from the end of a member's content to the next header."""
    return -size % BLOCK


def end_of_archive(offset: int) -> int:
    """Zero bytes that end a tar whose members end at `offset`: two blocks, and up to a whole record."""
    return 2 * BLOCK + -(offset + 2 * BLOCK) % tarfile.RECORDSIZE


def idx_line(offset: int, members: list[tuple[str, int]]) -> str:
    """DALI's line for a sample whose first content lies at `offset`, of the names and sizes of its members."""
    places = []
    for name, size in members:
        places.append(f"{name.split('.')[1]} {offset} {size} {name}")
        offset += size + padding(size) + BLOCK
    return " ".join(places)


def idx_text(lines: list[str]) -> bytes:
    """The content of an .idx file."""
    return "\n".join([f"{IDX_VERSION} {len(lines)}", *lines, ""]).encode()
