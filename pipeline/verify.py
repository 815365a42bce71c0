"""Is a packed data set what packing wrote? Every byte of shards and indices looked at; findings instead of errors.

A shard is known to the byte from its index: headers, names, order, padding, end. What differs is named.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from mimcl.pipeline.examine import NotUsable, examine, extension_of
from mimcl.pipeline.files import DataError, open_regular
from mimcl.pipeline.index import ShardIndex, read_dataset
from mimcl.pipeline.index_writer import fingerprint_of
from mimcl.pipeline.writer import BLOCK, end_of_archive, idx_line, idx_text, members_of, padding, tar_header

_ROWS = 64  # looked at by a worker at once
_IDX_LINE = 160  # bytes, more than any has
_KINDS = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.DIRTYPE: "a folder",
    tarfile.FIFOTYPE: "a pipe",
}

Job = tuple[int, Callable[[], list[str]]]  # images it deals with, and what finds out about them


def verify(root: Path, decode: bool, workers: int, on_progress: Callable[[int], None]) -> list[str]:
    """What is wrong with the data set in `root`, a line each, in the order of splits, shards and samples.

    `decode` decodes every pixel as well; `on_progress(n)` is called whenever n more images have been dealt with. Raises
    DataError when dataset.json cannot be used: then there is nothing to compare with.
    """
    jobs = (job for split, part in read_dataset(root)["splits"].items() for job in _split(root, split, part, decode))
    findings = []
    pool = ThreadPoolExecutor(workers)
    try:
        ahead = deque((images, pool.submit(work)) for images, work in islice(jobs, 4 * workers))
        while ahead:
            images, future = ahead.popleft()
            findings += future.result()
            on_progress(images)
            ahead.extend((images, pool.submit(work)) for images, work in islice(jobs, 1))
    finally:  # nothing is left to do then, unless something failed
        pool.shutdown(cancel_futures=True)
    return findings


def _split(root: Path, split: str, part: dict[str, Any], decode: bool) -> Iterator[Job]:
    try:
        index = ShardIndex.load(root, split)
    except DataError as error:
        yield 0, partial(list, [str(error)])
        index = None
    else:
        yield 0, partial(_index, index)
        if (np.diff(index.shard) < 0).any():
            yield 0, partial(list, [f"{split}.arrow: its rows are not in the order of the shards"])
            index = None
    for number, entry in enumerate(part["shards"]):
        try:
            tar = _Tar(root / entry["name"], entry["bytes"])
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            yield entry["samples"], partial(list, [f"{entry['name']}: {reason}"])
            continue
        yield 0, partial(_checksum, root / entry["name"], entry["xxh128"])
        if index is None:  # which says nothing that could be compared
            yield entry["samples"], list
        else:
            yield from _shard(index, number, tar, entry["samples"], decode)


def _index(index: ShardIndex) -> list[str]:
    findings, keys = [], index.keys()
    if not all(map(_is_key, keys)) or any(a >= b for a, b in pairwise(keys)):
        findings.append(f"{index.split}.arrow: its keys are not numbers in ascending order")
    columns = {"key": keys, "nbytes": index.nbytes, "xxh64": index.xxh64, "label": index.label}
    if fingerprint_of(pa.table(columns)) != index.fingerprint:
        findings.append(f"{index.split}.arrow: its fingerprint is not that of its rows")
    return findings


class _Tar:
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


def _checksum(path: Path, expected: str) -> list[str]:
    try:
        with open_regular(path) as file:
            found = hashlib.file_digest(file, xxhash.xxh128).hexdigest()
    except OSError as error:
        return [f"{path.name}: {error.strerror or error}"]
    return [] if found == expected else [f"{path.name}: its checksum differs from that in dataset.json"]


@dataclass(frozen=True)
class _Shard:
    """A tar, where its samples' records begin and end by the index, and the lines of its .idx."""

    index: ShardIndex
    tar: _Tar
    rows: range
    starts: NDArray[np.int64]  # of the first header
    ends: NDArray[np.int64]  # of the last member's padding
    idx: list[str]


def _shard(index: ShardIndex, number: int, tar: _Tar, samples: int, decode: bool) -> Iterator[Job]:
    first, last = np.searchsorted(index.shard, [number, number + 1]).tolist()
    rows = slice(first, last)
    # A label is at most ten digits: a header and one block.
    ends = index.offset[rows] + index.nbytes[rows]
    ends += -ends % BLOCK + np.where(index.label[rows] >= 0, 2 * BLOCK, 0)
    idx, idx_findings = _read_idx(index.root / tar.name, last - first)
    shard = _Shard(index, tar, range(first, last), index.offset[rows] - BLOCK, ends, idx)
    if samples != last - first:
        idx_findings.append(f"{tar.name}: {last - first:,} samples by the index, {samples:,} by dataset.json")
    yield 0, partial(list, idx_findings)
    for row in range(first, last, _ROWS):
        stretch = range(row, min(row + _ROWS, last))
        yield len(stretch), partial(_samples, shard, stretch, decode)
    yield 0, partial(_end, shard)


def _read_idx(tar: Path, samples: int) -> tuple[list[str], list[str]]:
    """The lines of the samples, and findings; no lines where they cannot be those of the samples."""
    path = tar.with_suffix(".idx")
    try:
        with open_regular(path) as file:
            content = file.read(_IDX_LINE * (samples + 1))
    except OSError as error:
        return [], [f"{path.name}: {error.strerror or error}"]
    lines = content.decode("ascii", "replace").split("\n")[1:-1]
    if len(lines) != samples or content != idx_text(lines):
        return [], [f"{path.name}: it is not an index of {samples:,} samples as DALI reads it"]
    return lines, []


def _samples(shard: _Shard, rows: range, decode: bool) -> list[str]:
    findings = []
    for row in rows:
        try:
            found = list(_sample(shard, row, decode))
        except OSError as error:
            found = [f"its bytes cannot be read ({error.strerror})"]
        findings += (f"{shard.tar.name}: sample {row:09d}: {what}" for what in found)
    return findings


def _sample(shard: _Shard, row: int, decode: bool) -> Iterator[str]:
    index, place = shard.index, row - shard.rows.start
    start, before = int(shard.starts[place]), int(shard.ends[place - 1]) if place else 0
    if start < before:
        yield "by the index it overlaps the one before"
    elif start > before:
        yield f"the index does not know what lies before it, {_described(shard.tar, before)}"
    offset, nbytes, label = int(index.offset[row]), int(index.nbytes[row]), int(index.label[row])
    record = memoryview(shard.tar.read(start, int(shard.ends[place])))
    data = record[BLOCK : BLOCK + nbytes]
    extension = extension_of(data)
    if xxhash.xxh64_intdigest(data) != int(index.xxh64[row]):
        yield "its bytes do not match the index"
    elif extension is None:
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
    key = index.key(row)
    members = members_of(key if _is_key(key) else f"{row:09d}", extension or "jpg", label, data)
    at = 0
    for name, content in members:
        if (header := bytes(record[at : at + BLOCK])) != (expected := tar_header(name, len(content))):
            yield _difference(header, expected)
        at += BLOCK
        if content is not data and bytes(record[at : at + len(content)]) != content:
            yield f"{name} does not say {label}, the label in the index"
        at += len(content)
        if bytes(record[at : at + padding(len(content))]).strip(b"\0"):
            yield f"there are bytes between {name} and what follows"
        at += padding(len(content))
    if shard.idx and shard.idx[place] != idx_line(offset, [(name, len(content)) for name, content in members]):
        yield "its line in the .idx file differs"


def _is_key(key: str) -> bool:
    return len(key) == 9 and key.isascii() and key.isdigit()


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


def _end(shard: _Shard) -> list[str]:
    tar, end = shard.tar, int(shard.ends[-1]) if len(shard.ends) else 0
    length = end_of_archive(end)
    try:
        tail = tar.read(end, end + length)
        if tail == bytes(length) and tar.size == end + length:
            return []
        if tail[:BLOCK].strip(b"\0"):
            after = _described(tar, end)
            return [f"{tar.name}: the index does not know what lies after the last sample, {after}"]
    except OSError as error:
        return [f"{tar.name}: its end cannot be read ({error.strerror})"]
    return [f"{tar.name}: the end of the archive is not as it is packed"]


def _described(tar: _Tar, at: int) -> str:
    try:
        member = tarfile.TarInfo.frombuf(tar.read(at, at + BLOCK), "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return "which is no tar member"
    return f"member {member.name!r}" + (f", {_KINDS[member.type]}" if member.type in _KINDS else "")
