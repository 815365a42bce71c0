"""The store of images that are not packed: it reads the items of a source, and checks them as packing does."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mimcl.pipeline.item_index import ItemIndex
from mimcl.pipeline.packing.pack_config import PackConfig
from mimcl.pipeline.packing.sample import prepare
from mimcl.pipeline.read_plan import ReadPlan, plan_reads
from mimcl.pipeline.read_pool import ReadPool
from mimcl.pipeline.store import Defect, defect_of

_AS_IT_IS = PackConfig()  # bytes are not changed


class ItemStore:
    """Reads items by several threads. What packing would reject is bad, for the same reason."""

    wants_read_plans = False

    def __init__(self, index: ItemIndex) -> None:
        self._index = index
        self._pool = ReadPool()
        self._reading = 0  # sample id

    def read(self, sample_ids: NDArray[np.int64]) -> list[NDArray[np.uint8] | Defect]:
        """The image bytes of each sample, or why it is bad; sets the sizes of the good ones in the index."""
        ids = sample_ids.tolist()

        def read_chunk(start: int, stop: int) -> list[NDArray[np.uint8] | Defect]:
            return [self._read(number) for number in ids[start:stop]]

        return [found for chunk in self._pool.run(len(ids), read_chunk) for found in chunk] if ids else []

    def _read(self, sample_id: int) -> NDArray[np.uint8] | Defect:
        self._reading = sample_id
        sample = prepare(self._index.items[sample_id], _AS_IT_IS)
        if isinstance(sample, str):
            return defect_of(self._index, sample_id, sample)
        self._index.width[sample_id], self._index.height[sample_id] = sample.header.width, sample.header.height
        return np.frombuffer(sample.data, np.uint8)

    def plan_reads(self, sample_ids: NDArray[np.int64]) -> ReadPlan:
        return plan_reads(self._index, sample_ids)

    def prefetch(self, reads: ReadPlan) -> None:
        """Do nothing: where items lie is not known."""

    def activity(self) -> str:
        return f"reading {self._index.path(self._reading)}"

    def paused_until(self) -> float:
        """Sources are never paused."""
        return -math.inf

    def close(self) -> None:
        """End the threads that read. The store may be used again."""
        self._pool.close()
