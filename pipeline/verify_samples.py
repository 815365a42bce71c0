"""Verify samples of a shard against the index, and their tar members against what packing writes."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from mimcl.pipeline.examine import NotUsable, examine, extension_of
from mimcl.pipeline.files import open_regular
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.writer import BLOCK, end_of_archive, idx_line, members_of, padding, tar_header

_MAX_JSON_BYTES = 1 << 24  # of the JSON beside an image
_KINDS = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.DIRTYPE: "a folder",
    tarfile.FIFOTYPE: "a pipe",
}


class Tar:
    """An open shard. Raises OSError if it cannot be opened, ValueError if it does not have `size` bytes.

    Not a memory map: if the disk fails, touching a map kills the process, and its pages count as the process's memory.
    """

    def __init__(self, path: Path, size: int) -> None:
        self.name, self.size = path.name, size
        self._file = open_regular(path)
        if (found := self._file.seek(0, 2)) != size:
            raise ValueError(f"has {found:,} bytes, dataset.json says {size:,}")

    def read(self, start: int, stop: int) -> bytes:
        """Bytes [start, stop), fewer at the end of the file. Thread-safe."""
        return os.pread(self._file.fileno(), stop - start, start)


@dataclass(frozen=True)
class Shard:
    """A tar, the offsets of its samples' records from the index, and the lines of its .idx file."""

    index: ShardIndex
    tar: Tar
    rows: range
    starts: NDArray[np.int64]  # of the first header
    ends: NDArray[np.int64]  # of the last member in the index, with its padding
    idx: list[str]
    json: bool  # whether samples may end with a KEY.json, which is not in the index

    def end(self, place: int) -> int:
        """The end of a sample's record, including its KEY.json if there is one. Raises OSError."""
        end = int(self.ends[place])
        if not self.json:
            return end
        try:
            header = tarfile.TarInfo.frombuf(self.tar.read(end, end + BLOCK), "utf-8", "surrogateescape")
        except tarfile.HeaderError:
            return end
        if header.name != f"{self.index.key(self.rows[place])}.json" or not 0 < header.size <= _MAX_JSON_BYTES:
            return end
        return end + BLOCK + header.size + padding(header.size)


def check_samples(shard: Shard, rows: range, decode: bool) -> list[str]:
    """Find what is wrong with samples that mimcl packed."""
    findings: list[str] = []
    for row in rows:
        try:
            found = list(_sample(shard, row, decode))
        except OSError as error:
            found = [f"its bytes cannot be read ({error.strerror})"]
        findings += (f"{shard.tar.name}: sample {row:09d}: {what}" for what in found)
    return findings


def check_adopted_samples(index: ShardIndex, tar: Tar, rows: range, decode: bool) -> list[str]:
    """Find what is wrong with the images in another program's shard, whose other bytes are unknown."""
    findings: list[str] = []
    for row in rows:
        offset, nbytes = int(index.offset[row]), int(index.nbytes[row])
        try:
            found = list(_image(index, row, tar.read(offset, offset + nbytes), decode))
        except OSError as error:
            found = [f"its bytes cannot be read ({error.strerror})"]
        findings += (f"{tar.name}: sample {index.key(row)!r:.120}: {what}" for what in found)
    return findings


def _image(index: ShardIndex, row: int, data: bytes | memoryview, decode: bool) -> Iterator[str]:
    if xxhash.xxh64_intdigest(data) != int(index.xxh64[row]):
        yield "its bytes do not match the index"
    elif extension_of(data) is None:
        yield "it is not a JPEG, PNG or WebP image"
    else:
        try:
            image = examine(data, decode)
        except NotUsable as reason:
            yield str(reason)
        else:
            size = (int(index.width[row]), int(index.height[row]))
            if (image.width, image.height) != size:
                yield f"it has {image.width} x {image.height} pixels by its header, {size[0]} x {size[1]} in the index"


def _sample(shard: Shard, row: int, decode: bool) -> Iterator[str]:
    index, place = shard.index, row - shard.rows.start
    start, before = int(shard.starts[place]), shard.end(place - 1) if place else 0
    if start < before:
        yield "in the index it overlaps the previous sample"
    elif start > before:
        yield f"data not in the index precedes it: {_describe(shard.tar, before)}"
    offset, nbytes, label = int(index.offset[row]), int(index.nbytes[row]), int(index.label[row])
    known, stop = int(shard.ends[place]), shard.end(place)
    record = memoryview(shard.tar.read(start, stop))
    data = record[BLOCK : BLOCK + nbytes]
    yield from _image(index, row, data, decode)
    key = index.key(row)
    if not is_own_key(key):  # reported once for the whole index
        key = f"{row:09d}"
    json_bytes = b""
    if stop > known:
        size = tarfile.TarInfo.frombuf(bytes(record[known - start : known - start + BLOCK]), "utf-8", "replace").size
        json_bytes = bytes(record[known - start + BLOCK : known - start + BLOCK + size])
    members = members_of(key, extension_of(data) or "jpg", label, data, json_bytes)
    at = 0
    for name, content in members:
        if (header := bytes(record[at : at + BLOCK])) != (expected := tar_header(name, len(content))):
            yield _difference(header, expected)
        at += BLOCK
        if name.endswith(".cls") and bytes(record[at : at + len(content)]) != content:
            yield f"{name} does not contain {label}, the label in the index"
        at += len(content)
        if bytes(record[at : at + padding(len(content))]).strip(b"\0"):
            yield f"the padding after {name} is not zero"
        at += padding(len(content))
    if json_bytes:
        yield from _check_json(f"{key}.json", json_bytes, label)
    if shard.idx and shard.idx[place] != idx_line(offset, [(name, len(content)) for name, content in members]):
        yield "its line in the .idx file differs"


def is_own_key(key: str) -> bool:
    """Whether a key is like those that packing gives: nine digits."""
    return len(key) == 9 and key.isascii() and key.isdigit()


def _check_json(name: str, content: bytes, label: int) -> Iterator[str]:
    """Find what is wrong with the JSON of a sample."""
    try:
        said = json.loads(content)
    except (ValueError, RecursionError):
        yield f"{name} is not JSON"
        return
    if not isinstance(said, dict):
        yield f"{name} is not a JSON object"
    elif said.get("label") not in ((label,) if label >= 0 else (label, None)):
        yield f"{name} has label {said.get('label')!r:.40}, the index has {label}"


def _difference(header: bytes, expected: bytes) -> str:
    """Say how a member's header differs from the expected one."""
    should = tarfile.TarInfo.frombuf(expected, "utf-8", "surrogateescape")
    try:
        found = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        return f"not a tar member {should.name} ({error})"
    if found.type != tarfile.REGTYPE:
        return f"member {found.name!r} is {_KINDS.get(found.type, 'of an unusual kind')}, not a regular file"
    if found.name != should.name:
        return f"member {found.name!r} should be called {should.name}"
    if found.size != should.size:
        return f"member {found.name} has {found.size:,} bytes by its header, {should.size:,} in the index"
    return f"the header of {should.name} differs from what packing writes"


def check_end(shard: Shard) -> list[str]:
    """Find what is wrong after the last sample of a shard that mimcl packed."""
    tar = shard.tar
    try:
        end = shard.end(len(shard.ends) - 1) if len(shard.ends) else 0
        length = end_of_archive(end)
        tail = tar.read(end, end + length)
        if tail == bytes(length) and tar.size == end + length:
            return []
        if tail[:BLOCK].strip(b"\0"):
            return [f"{tar.name}: data not in the index follows the last sample: {_describe(tar, end)}"]
    except OSError as error:
        return [f"{tar.name}: its end cannot be read ({error.strerror})"]
    return [f"{tar.name}: the end of the archive differs from what packing writes"]


def _describe(tar: Tar, at: int) -> str:
    try:
        member = tarfile.TarInfo.frombuf(tar.read(at, at + BLOCK), "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return "not a tar member"
    return f"member {member.name!r}" + (f", {_KINDS[member.type]}" if member.type in _KINDS else "")
