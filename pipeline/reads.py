"""Which byte ranges to read for the samples of a stretch of draws: each sample once, small gaps read with them.

A request costs about as much as some hundred KB, but what is read and not needed is wasted. So the smallest gaps are
bridged first, for as long as the bytes read stay below a given multiple of the bytes needed: no other choice makes
fewer requests within that limit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mimcl.pipeline.index import ShardIndex

AMPLIFICATION = 1.15  # bytes read over bytes needed, at most


@dataclass(frozen=True, eq=False)
class Reads:
    """R disjoint ranges [start, stop) of bytes in shards, in the order of the index, and what they are for."""

    shard: NDArray[np.int32]  # (R,)
    start: NDArray[np.int64]  # (R,)
    stop: NDArray[np.int64]  # (R,)
    sample_ids: NDArray[np.int64]  # distinct samples, ascending
    first: NDArray[np.int64]  # (R + 1,): range k holds sample_ids[first[k] : first[k + 1]]
    needed: int  # bytes of the samples

    @property
    def fetched(self) -> int:
        """Bytes read, gaps included."""
        return int((self.stop - self.start).sum())


def plan_reads(index: ShardIndex, sample_ids: NDArray[np.int64], amplification: float = AMPLIFICATION) -> Reads:
    """The fewest ranges that hold the samples (any order, repeats allowed) within `amplification` times their bytes."""
    distinct = np.unique(sample_ids)
    shard, start = index.shard[distinct], index.offset[distinct]
    stop = start + index.nbytes[distinct]
    needed = int((stop - start).sum())
    joinable = np.flatnonzero(shard[1:] == shard[:-1])
    gaps = start[joinable + 1] - stop[joinable]
    by_size = np.argsort(gaps, kind="stable")
    bridged = np.searchsorted(np.cumsum(gaps[by_size]), (amplification - 1) * needed, side="right")
    cut = np.ones(len(distinct) + 1, bool)
    cut[joinable[by_size[:bridged]] + 1] = False
    first = np.flatnonzero(cut)
    last = first[1:] - 1
    return Reads(shard[first[:-1]], start[first[:-1]], stop[last], distinct, first, needed)
