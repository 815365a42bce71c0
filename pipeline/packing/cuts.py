"""Decide where shards begin before anything is read, so that shards can be packed independently."""

from __future__ import annotations

import tarfile
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mimcl.pipeline.packing.pack_config import PackConfig
from mimcl.pipeline.packing.sample import prepare
from mimcl.pipeline.sources.item import Item
from mimcl.pipeline.writer import BLOCK

_SHRUNK_ITEMS = 64  # of a split, to estimate how much smaller the others get


def find_cuts(items: Sequence[Item], config: PackConfig) -> list[int]:
    """Return the positions at which shards begin, then the number of items: as few shards as `shard_mb` allows.

    Depends only on the items and the config. An image larger than a shard gets its own.
    """
    # One pass, since some sources make each item on access.
    columns = ((item.nbytes, item.label >= 0, len(item.json)) for item in items)
    sizes, has_label, json_sizes = np.fromiter(columns, np.dtype((np.int64, 3)), len(items)).T
    if config.short_side:
        sizes = np.rint(sizes * _shrink_factor(items, config)).astype(np.int64)
    ends = np.cumsum(_tar_sizes(sizes, has_label, json_sizes))
    shard_bytes = config.shard_mb * 1_000_000
    room = shard_bytes // tarfile.RECORDSIZE * tarfile.RECORDSIZE - 2 * BLOCK  # without the end-of-archive blocks
    found, before = [0], 0
    while found[-1] < len(items):
        first = found[-1]
        found.append(max(first + 1, int(np.searchsorted(ends, before + room, "right"))))
        before = int(ends[found[-1] - 1])
    return found


def _tar_sizes(
    sizes: NDArray[np.int64], has_label: NDArray[np.int64], json_sizes: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the bytes that each item takes in a tar: headers, contents and padding."""
    total = BLOCK + sizes + -sizes % BLOCK + 2 * BLOCK * has_label
    return total + np.where(json_sizes > 0, BLOCK + json_sizes + -json_sizes % BLOCK, 0)


def _shrink_factor(items: Sequence[Item], config: PackConfig) -> float:
    """Return the ratio of bytes after and before shrinking, measured on evenly spaced items."""
    before = after = 0
    for position in np.linspace(0, len(items) - 1, min(_SHRUNK_ITEMS, len(items))).astype(int):
        sample = prepare(items[position], config)
        if not isinstance(sample, str):
            before, after = before + items[position].nbytes, after + len(sample.data)
    return after / before if before else 1.0
