"""Bytes of samples: views into memory-mapped local shards, checked against the index at every read."""

from __future__ import annotations

import mmap
from functools import lru_cache
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from mimcl.pipeline.files import DataError
from mimcl.pipeline.index import ShardIndex

# A map holds a file descriptor; of these the usual limit is 1,024 a process. Mapping anew costs microseconds.
_OPEN_SHARDS = 512


class ShardStore:
    """Reads samples of one split. Views stay valid for as long as they are held."""

    def __init__(self, index: ShardIndex) -> None:
        self._index = index
        self._shard = lru_cache(maxsize=_OPEN_SHARDS)(self._map)

    def read(self, sample_ids: NDArray[np.int64]) -> list[NDArray[np.uint8]]:
        """The image bytes of each sample, without copying. Raises DataError naming key and shard of a bad one."""
        index = self._index
        views = []
        for sample_id, shard, offset, nbytes, expected in zip(
            sample_ids.tolist(),
            index.shard[sample_ids].tolist(),
            index.offset[sample_ids].tolist(),
            index.nbytes[sample_ids].tolist(),
            index.xxh64[sample_ids].tolist(),
            strict=True,
        ):
            view = self._shard(shard)[offset : offset + nbytes]
            if xxhash.xxh64_intdigest(view) != expected:
                raise DataError(
                    f"sample {index.key(sample_id)} in {self._path(shard)} is damaged: its bytes do not match the "
                    "index; restore the shard or pack again with `mimcl shard`"
                )
            views.append(view)
        return views

    def _map(self, shard: int) -> NDArray[np.uint8]:
        if not 0 <= shard < len(self._index.shards):
            raise DataError(f"the index of {self._index.root} is damaged: there is no shard {shard}; pack again")
        path, expected = self._path(shard), self._index.shards[shard]["bytes"]
        try:
            with open(path, "rb") as file:
                size = file.seek(0, 2)
                if size == expected:
                    return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
        except OSError as error:
            raise DataError(f"shard {path} cannot be read ({error.strerror}); restore it or pack again") from None
        raise DataError(f"shard {path} has {size:,} bytes, the index says {expected:,}; restore it or pack again")

    def _path(self, shard: int) -> Path:
        return self._index.root / self._index.shards[shard]["name"]
