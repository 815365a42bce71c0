"""The shards of a remote data set: their size and etag are fetched on first use and must not change afterwards."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mimcl.pipeline.files import DataError
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.remote.remote_folder import RemoteFolder, Stat
from mimcl.pipeline.remote.shard_cache import ShardCache


class RemoteShard(NamedTuple):
    """A shard as it was on first use."""

    name: str
    stat: Stat
    key: str  # in the cache
    first: int  # its samples are rows [first, last) of the index
    last: int


class RemoteShards:
    """The shards of an index by number. Thread-safe."""

    def __init__(self, index: ShardIndex, remote: RemoteFolder) -> None:
        self._index, self._remote = index, remote
        self._opened: dict[int, RemoteShard] = {}

    def __contains__(self, number: int) -> bool:
        """Whether `open` needs no request."""
        return number in self._opened

    def open(self, number: int) -> RemoteShard:
        """Return a shard with the size and etag it had on first use. Raises DataError if its size is wrong."""
        if opened := self._opened.get(number):
            return opened
        index = self._index
        if not 0 <= number < len(index.shards):
            raise DataError(f"the index of {index.shown} is damaged: shard {number} does not exist; pack again")
        name, size = index.shards[number]["name"], index.shards[number]["bytes"]
        stat = self._remote.stat(name)
        if stat.size != size:
            stat = self._remote.stat(name, anew=True)  # the first answer may have been truncated
        if stat.size != size:
            raise DataError(
                f"shard {self._remote.address(name)} has {stat.size:,} bytes, the index says {size:,}; upload it "
                "again, or pack again"
            )
        first, last = np.searchsorted(index.shard, [number, number + 1]).tolist()
        key = ShardCache.key(self._remote.address(name), stat)
        # Another thread may have been faster; all use the first answer.
        return self._opened.setdefault(number, RemoteShard(name, stat, key, first, last))

    def require_unchanged(self, shard: RemoteShard) -> None:
        """Raise DataError if the shard has changed since it was opened."""
        if (now := self._remote.stat(shard.name, anew=True)) != shard.stat:
            before, after = (f"{stat.size:,} bytes and etag {stat.etag or 'none'}" for stat in (shard.stat, now))
            raise DataError(
                f"shard {self._remote.address(shard.name)} changed while it was in use: it had {before}, now {after}; "
                "restore the original, or pack again"
            )
