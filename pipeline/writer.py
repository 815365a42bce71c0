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
_BLOCK = 512  # of a tar


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
        members = [(f"{key}.{header.extension}", data)]
        if label >= 0:
            members.append((f"{key}.cls", str(label).encode()))
        records = [_tar_record(member, content) for member, content in members]
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
        first = self.offset + _BLOCK
        places = []
        for (name, data), record in zip(members, records, strict=True):
            places.append(f"{name.split('.')[1]} {self.offset + _BLOCK} {len(data)} {name}")
            self._write(record)
        self._idx.append(" ".join(places))
        return first

    def finish(self) -> dict[str, Any]:
        """Ends the tar and writes its .idx; returns the shard's entry in dataset.json."""
        self._write(bytes(-(self.offset + 2 * _BLOCK) % tarfile.RECORDSIZE + 2 * _BLOCK))
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        with atomic_file(self._path.with_suffix(".idx")) as file:
            file.write("\n".join([f"{IDX_VERSION} {len(self._idx)}", *self._idx, ""]).encode())
        digest = self._hash.hexdigest()
        return {"name": self._path.name, "bytes": self.offset, "samples": len(self._idx), "xxh128": digest}

    def _write(self, data: bytes) -> None:
        self.file.write(data)
        self._hash.update(data)
        self.offset += len(data)


def _tar_record(name: str, data: bytes) -> bytes:
    info = tarfile.TarInfo(name)  # time 0, owner 0, no names: nothing of this machine gets into the bytes
    info.size = len(data)
    return info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % _BLOCK)
