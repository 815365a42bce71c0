"""Samples of a packed data set, in any order, as items of a source."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import xxhash
from numpy.typing import NDArray

from mimcl.pipeline.files import DataError
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.sources.item import Item, RangeItem
from mimcl.pipeline.sources.names import to_fs


@dataclass(frozen=True)
class PackedItem(RangeItem):
    """A sample's image in its shard."""

    xxh64: int

    def read(self) -> bytes:
        """Return the bytes. Raises OSError, also if they do not match the index."""
        data = super().read()
        if xxhash.xxh64_intdigest(data) != self.xxh64:
            raise OSError("checksum mismatch: its bytes differ from the index")
        return data


class PackedItems(Sequence[Item]):
    """The samples `rows` (n,) of a split as items made on access; they keep path and label.

    `json(row)` returns the KEY.json to pack beside a sample. Pickled as the list of its items. Raises DataError if a
    shard is missing or remote.
    """

    def __init__(
        self, index: ShardIndex, rows: NDArray[np.int64], json: Callable[[int], bytes] = lambda row: b""
    ) -> None:
        self._index, self._rows, self._json = index, rows, json
        self._files = [index.root / to_fs(shard["name"]) for shard in index.shards]
        if missing := [file for file in self._files if not file.is_file()]:
            raise DataError(f"{missing[0]} not found; restore it, or download a remote data set first")

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, place: int) -> Item: ...
    @overload
    def __getitem__(self, place: slice) -> PackedItems: ...
    def __getitem__(self, place: int | slice) -> Item | PackedItems:
        if isinstance(place, slice):
            part = object.__new__(PackedItems)
            part._index, part._rows, part._json, part._files = self._index, self._rows[place], self._json, self._files
            return part
        index, row = self._index, int(self._rows[place])
        return PackedItem(
            name=index.path(row),
            label=int(index.label[row]),
            nbytes=int(index.nbytes[row]),
            file=self._files[index.shard[row]],
            offset=int(index.offset[row]),
            xxh64=int(index.xxh64[row]),
            json=self._json(row),
        )

    def __reduce__(self) -> tuple:
        return list, (list(self),)
