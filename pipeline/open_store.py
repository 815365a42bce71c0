"""The choice of a store: local shards, a remote folder, or images that are not packed."""

from __future__ import annotations

from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.item_index import ItemIndex
from mimcl.pipeline.item_store import ItemStore
from mimcl.pipeline.store import ShardStore, Store


def open_store(index: ShardIndex, whole_shards: bool = False) -> Store:
    """Open the store of a split's images. Raises DataError if a remote folder needs a library that is missing.

    With `whole_shards`, remote shards are prefetched whole: the cache must have room for all of them.
    """
    if isinstance(index, ItemIndex):
        return ItemStore(index)
    if index.url is None:
        return ShardStore(index)
    from mimcl.pipeline.remote.remote_store import RemoteStore

    return RemoteStore(index, whole_shards)
