"""Is a sample of a shard what the index says, and its members what packing writes? Findings in place of errors."""

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

_MOST_JSON = 1 << 24  # bytes of the json beside an image
_KINDS = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.DIRTYPE: "a folder",
    tarfile.FIFOTYPE: "a pipe",
}


class Tar:
    """An open shard. Raises OSError or ValueError when it is not there or not `size` bytes long.

    Not a memory map: where the disk fails, touching one kills the process, and its pages count as memory of it.
    """

    def __init__(self, path: Path, size: int) -> None:
        self.name, self.size = path.name, size
        self._file = open_regular(path)
        if (found := self._file.seek(0, 2)) != size:
            raise ValueError(f"has {found:,} bytes, dataset.json says {size:,}")

    def read(self, start: int, stop: int) -> bytes:
        """Bytes [start, stop), fewer at the end; from any thread."""
        return os.pread(self._file.fileno(), stop - start, start)


@dataclass(frozen=True)
class Shard:
    """A tar, where its samples' records begin and end by the index, and the lines of its .idx."""

    index: ShardIndex
    tar: Tar
    rows: range
    starts: NDArray[np.int64]  # of the first header
    ends: NDArray[np.int64]  # of the padding of the last member that the index knows of
    idx: list[str]
    json: bool  # samples may have a KEY.json at their end, whose size its header tells

    def end(self, place: int) -> int:
        """Where a sample's record ends; without its KEY.json where there is none. Raises OSError."""
        end = int(self.ends[place])
        if not self.json:
            return end
        try:
            header = tarfile.TarInfo.frombuf(self.tar.read(end, end + BLOCK), "utf-8", "surrogateescape")
        except tarfile.HeaderError:
            return end
        if header.name != f"{self.index.key(self.rows[place])}.json" or not 0 < header.size <= _MOST_JSON:
            return end
        return end + BLOCK + header.size + padding(header.size)


def samples(shard: Shard, rows: range, decode: bool) -> list[str]:
    """What is wrong with samples that mimcl packed."""
    findings = []
    for row in rows:
        try:
            found = list(_sample(shard, row, decode))
        except OSError as error:
            found = [f"its bytes cannot be read ({error.strerror})"]
        findings += (f"{shard.tar.name}: sample {row:09d}: {what}" for what in found)
    return findings


def adopted_samples(index: ShardIndex, tar: Tar, rows: range, decode: bool) -> list[str]:
    """What is wrong with samples in the shard of another program, of which the images alone are known."""
    findings = []
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
                yield f"its header says {image.width} x {image.height}, the index {size[0]} x {size[1]}"


def _sample(shard: Shard, row: int, decode: bool) -> Iterator[str]:
    index, place = shard.index, row - shard.rows.start
    start, before = int(shard.starts[place]), shard.end(place - 1) if place else 0
    if start < before:
        yield "by the index it overlaps the one before"
    elif start > before:
        yield f"the index does not know what lies before it, {_described(shard.tar, before)}"
    offset, nbytes, label = int(index.offset[row]), int(index.nbytes[row]), int(index.label[row])
    known, stop = int(shard.ends[place]), shard.end(place)
    record = memoryview(shard.tar.read(start, stop))
    data = record[BLOCK : BLOCK + nbytes]
    yield from _image(index, row, data, decode)
    key = index.key(row)
    if not is_own_key(key):  # which is said of the index as a whole
        key = f"{row:09d}"
    beside = b""
    if stop > known:
        size = tarfile.TarInfo.frombuf(bytes(record[known - start : known - start + BLOCK]), "utf-8", "replace").size
        beside = bytes(record[known - start + BLOCK : known - start + BLOCK + size])
    members = members_of(key, extension_of(data) or "jpg", label, data, beside)
    at = 0
    for name, content in members:
        if (header := bytes(record[at : at + BLOCK])) != (expected := tar_header(name, len(content))):
            yield _difference(header, expected)
        at += BLOCK
        if name.endswith(".cls") and bytes(record[at : at + len(content)]) != content:
            yield f"{name} does not say {label}, the label in the index"
        at += len(content)
        if bytes(record[at : at + padding(len(content))]).strip(b"\0"):
            yield f"there are bytes between {name} and what follows"
        at += padding(len(content))
    if beside:
        yield from _beside(f"{key}.json", beside, label)
    if shard.idx and shard.idx[place] != idx_line(offset, [(name, len(content)) for name, content in members]):
        yield "its line in the .idx file differs"


def is_own_key(key: str) -> bool:
    """Whether it is a key as packing gives them: nine digits."""
    return len(key) == 9 and key.isascii() and key.isdigit()


def _beside(name: str, content: bytes, label: int) -> Iterator[str]:
    """What is wrong with the json of a sample."""
    try:
        said = json.loads(content)
    except (ValueError, RecursionError):
        yield f"{name} is no JSON"
        return
    if not isinstance(said, dict):
        yield f"{name} is no object with fields"
    elif said.get("label") not in ((label,) if label >= 0 else (label, None)):
        yield f"{name} says label {said.get('label')!r:.40}, the index {label}"


def _difference(header: bytes, expected: bytes) -> str:
    """What is wrong with a member's header."""
    should = tarfile.TarInfo.frombuf(expected, "utf-8", "surrogateescape")
    try:
        found = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        return f"no tar member {should.name} ({error})"
    if found.type != tarfile.REGTYPE:
        return f"member {found.name!r} is {_KINDS.get(found.type, 'of an unusual kind')}, not a regular file"
    if found.name != should.name:
        return f"member {found.name!r} should be called {should.name}"
    if found.size != should.size:
        return f"member {found.name} has {found.size:,} bytes by its header, {should.size:,} by the index"
    return f"the header of {should.name} is not as it is packed"


def end(shard: Shard) -> list[str]:
    """What is wrong with what follows the last sample that mimcl packed."""
    tar = shard.tar
    try:
        end = shard.end(len(shard.ends) - 1) if len(shard.ends) else 0
        length = end_of_archive(end)
        tail = tar.read(end, end + length)
        if tail == bytes(length) and tar.size == end + length:
            return []
        if tail[:BLOCK].strip(b"\0"):
            after = _described(tar, end)
            return [f"{tar.name}: the index does not know what lies after the last sample, {after}"]
    except OSError as error:
        return [f"{tar.name}: its end cannot be read ({error.strerror})"]
    return [f"{tar.name}: the end of the archive is not as it is packed"]


def _described(tar: Tar, at: int) -> str:
    try:
        member = tarfile.TarInfo.frombuf(tar.read(at, at + BLOCK), "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return "which is no tar member"
    return f"member {member.name!r}" + (f", {_KINDS[member.type]}" if member.type in _KINDS else "")
