"""Where one shard ends and the next begins, known before anything is read: so shards are packed independently."""

from __future__ import annotations

import tarfile
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mimcl.pipeline.packing.pack_config import PackConfig
from mimcl.pipeline.packing.sample import prepare
from mimcl.pipeline.sources.item import Item
from mimcl.pipeline.writer import BLOCK

_MEASURED = 64  # items of a split that are shrunk to find out how much smaller the others get


def cuts(items: Sequence[Item], config: PackConfig) -> list[int]:
    """Positions at which shards begin, and the number of items last: as few as keep below `shard_mb`, in order.

    A function of the items and the config alone. An image that is larger than a shard gets its own.
    """
    # In one go: sources that make an item when it is asked for make each once.
    facts = ((item.nbytes, item.label >= 0, len(item.json)) for item in items)
    sizes, labelled, beside = np.fromiter(facts, np.dtype((np.int64, 3)), len(items)).T
    if config.short_side:
        sizes = np.rint(sizes * _share_left(items, config)).astype(np.int64)
    ends = np.cumsum(_records(sizes, labelled, beside))
    shard_bytes = config.shard_mb * 1_000_000
    room = shard_bytes // tarfile.RECORDSIZE * tarfile.RECORDSIZE - 2 * BLOCK  # what ends a tar belongs to it
    found, before = [0], 0
    while found[-1] < len(items):
        first = found[-1]
        found.append(max(first + 1, int(np.searchsorted(ends, before + room, "right"))))
        before = int(ends[found[-1] - 1])
    return found


def _records(sizes: NDArray[np.int64], labelled: NDArray[np.int64], beside: NDArray[np.int64]) -> NDArray[np.int64]:
    """Bytes that each item takes in a tar: headers, contents, paddings; `beside` is the length of its json."""
    records = BLOCK + sizes + -sizes % BLOCK + 2 * BLOCK * labelled
    return records + np.where(beside > 0, BLOCK + beside + -beside % BLOCK, 0)


def _share_left(items: Sequence[Item], config: PackConfig) -> float:
    """How many bytes are left of one, measured on evenly spaced items."""
    before = after = 0
    for position in np.linspace(0, len(items) - 1, min(_MEASURED, len(items))).astype(int):
        sample = prepare(items[position], config)
        if not isinstance(sample, str):
            before, after = before + items[position].nbytes, after + len(sample.data)
    return after / before if before else 1.0
