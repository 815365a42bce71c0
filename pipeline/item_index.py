"""The index of images that are not packed: the items of a source, whose sizes are known once they are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash

from mimcl.pipeline.examine import MAX_PIXELS
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.sources.item import Item


@dataclass(frozen=True)
class ItemIndex(ShardIndex):
    """Items as a split that a Stream reads like one in shards: with the keys, paths and labels that packing gives them.

    `width` and `height` are filled in when an item is read. There are no shards: offsets and hashes are zero.
    """

    items: Sequence[Item] = ()

    @property
    def largest(self) -> int:
        """The limit, since the sizes are not known yet."""
        return MAX_PIXELS

    def described(self, sample_id: int) -> str:
        return self.path(sample_id)

    @classmethod
    def of(
        cls, root: Path, items: Sequence[Item], classes: list[str], split: str = "train", modified: int = 0
    ) -> ItemIndex:
        """Index the items of a split. The fingerprint is of their names, sizes and labels, and the source's time."""
        count, digest = len(items), xxhash.xxh128(repr((classes, split, modified)).encode())
        for item in items:
            digest.update(f"{item.name!r} {item.label} {item.nbytes}\n".encode())
        names = pa.array([item.name for item in items], pa.large_string())
        keys = pa.array([f"{number:09d}" for number in range(count)], pa.large_string())
        return cls(
            root,
            split,
            digest.hexdigest(),
            classes,
            [{"name": root.name, "bytes": 0, "samples": count, "xxh128": ""}],
            shard=np.zeros(count, np.int32),
            offset=np.zeros(count, np.int64),
            nbytes=np.zeros(count, np.int64),
            xxh64=np.zeros(count, np.uint64),
            width=np.zeros(count, np.int32),
            height=np.zeros(count, np.int32),
            label=np.fromiter((item.label for item in items), np.int32, count),
            _table=pa.record_batch([keys, names], ["key", "path"]),
            items=items,
        )
