"""The jobs of worker processes: pack one shard, or hash some items. A job is finished once its last file exists."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from mimcl.pipeline.files import atomic_file, open_regular
from mimcl.pipeline.index import COLUMNS
from mimcl.pipeline.map_file import map_file
from mimcl.pipeline.packing.pack_config import PackConfig
from mimcl.pipeline.packing.sample import prepare, read
from mimcl.pipeline.sources.item import Item
from mimcl.pipeline.writer import members_of, new_shard

_PROGRESS_ITEMS = 32  # between two reports of progress
_ROWS = pa.schema([(name, kind) for name, kind in COLUMNS.items() if name != "shard"])  # added by `write_description`

Advance = Callable[[int], None]


@dataclass(frozen=True)
class ShardJob:
    """The items of one shard; the first has the key `first`. Writes .idx and .rows beside `tar`."""

    tar: Path
    first: int
    items: Sequence[Item]
    config: PackConfig


@dataclass(frozen=True)
class PackedShard:
    """A finished shard; without samples it has neither tar nor .idx. `rejected` are (name, reason)."""

    tar: Path
    samples: int
    nbytes: int
    xxh128: str
    changed: int
    rejected: list[list[str]]

    def rows(self) -> pa.Table:
        """Return the index's columns except `shard`, memory-mapped."""
        with open_regular(rows_path(self.tar)) as file:
            return pa.ipc.open_file(map_file(file)).read_all()


def rows_path(tar: Path) -> Path:
    """Return the path of a shard's rows."""
    return tar.with_suffix(".rows")


def pack_shard(job: ShardJob, advance: Advance) -> None:
    """Write tar, .idx and, last, .rows. Raises DataError, and OSError if it cannot write."""
    rows: dict[str, list] = {name: [] for name in _ROWS.names}
    rejected: list[list[str]] = []
    changed, writer = 0, None
    with ExitStack() as stack:
        for place, item in enumerate(_with_progress(job.items, advance)):
            sample = prepare(item, job.config)
            if isinstance(sample, str):
                rejected.append([item.name, sample])
            else:
                writer = writer or stack.enter_context(new_shard(job.tar))
                header, key = sample.header, f"{job.first + place:09d}"
                offset = writer.add(members_of(key, header.extension, item.label, sample.data, item.json))
                row = (key, item.name, offset, len(sample.data), sample.xxh64, header.width, header.height, item.label)
                for column, value in zip(rows.values(), row, strict=True):
                    column.append(value)
                changed += sample.changed
    summary = {
        "samples": len(rows["key"]),
        "nbytes": writer.nbytes if writer else 0,
        "xxh128": writer.xxh128() if writer else "",
        "changed": changed,
        "rejected": rejected,
    }
    schema = _ROWS.with_metadata({"about": json.dumps(summary)})
    with atomic_file(rows_path(job.tar)) as file, pa.ipc.new_file(file, schema) as out:
        out.write_table(pa.table(rows, schema))
    advance(len(job.items) % _PROGRESS_ITEMS)


def load_packed_shard(tar: Path) -> PackedShard | None:
    """Return a finished shard, or None if it is not finished or was moved."""
    try:
        with open_regular(rows_path(tar)) as file:
            summary: dict[str, Any] = json.loads(pa.ipc.open_file(map_file(file)).schema.metadata[b"about"])
    except FileNotFoundError:
        return None
    return PackedShard(tar, **summary)


def is_complete(shard: PackedShard | None) -> bool:
    """Whether the shard is finished and its files exist, the tar with the size that was written."""
    if shard is None:
        return False
    if not shard.samples:
        return True
    return shard.tar.with_suffix(".idx").exists() and shard.tar.exists() and shard.tar.stat().st_size == shard.nbytes


@dataclass(frozen=True)
class HashJob:
    """Items at `positions`, whose hashes are written to `path`."""

    path: Path
    positions: list[int]
    items: list[Item]


def hash_items(job: HashJob, advance: Advance) -> None:
    """Write position and xxh128 (upper, lower half) of each readable item as .npy: (n, 3) of uint64."""
    found = []
    for position, item in zip(job.positions, _with_progress(job.items, advance), strict=True):
        try:
            both = xxhash.xxh128_intdigest(read(item))
        except OSError:  # packing rejects it
            continue
        found.append((position, both >> 64, both & (2**64 - 1)))
    with atomic_file(job.path) as file:
        np.save(file, np.array(found, np.uint64).reshape(-1, 3))
    advance(len(job.items) % _PROGRESS_ITEMS)


def _with_progress(items: Sequence[Item], advance: Advance) -> Iterator[Item]:
    """Yield the items and report progress, except for the last few, which the job reports once it is finished."""
    for place, item in enumerate(items, 1):
        yield item
        if place % _PROGRESS_ITEMS == 0:
            advance(_PROGRESS_ITEMS)
