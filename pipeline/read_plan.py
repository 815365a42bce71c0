"""Which byte ranges to read for the samples of a stretch of draws: each sample once, small gaps read with them.

What is read in a window is the ranges of each of its stretches, for the draws of one machine: its processes plan the
same ranges, so that they can share what they read.

A request costs about as much as some hundred KB, but what is read and not needed is wasted. So the smallest gaps are
bridged first, for as long as the bytes read stay below a given multiple of the bytes needed: no other choice makes
fewer requests within that limit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mimcl.pipeline.batch_shares import BatchShares
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.plan import Window

AMPLIFICATION = 1.15  # bytes read over bytes needed, at most
_CHUNK = 1 << 18  # draws looked at at once


@dataclass(frozen=True, eq=False)
class Reads:
    """R disjoint ranges [start, stop) of bytes in shards, in the order of the index, and what they are for."""

    shard: NDArray[np.int32]  # (R,)
    start: NDArray[np.int64]  # (R,)
    stop: NDArray[np.int64]  # (R,)
    sample_ids: NDArray[np.int64]  # distinct, ascending: what is needed, and whole samples that cost less than a cut
    first: NDArray[np.int64]  # (R + 1,): range k holds sample_ids[first[k] : first[k + 1]]
    needed: int  # bytes of the samples that are needed

    @property
    def fetched(self) -> int:
        """Bytes read, gaps included."""
        return int((self.stop - self.start).sum())


def plan_reads(
    index: ShardIndex, sample_ids: NDArray[np.int64], amplification: float = AMPLIFICATION, near: int = 0
) -> Reads:
    """The fewest ranges that hold the samples (any order, repeats allowed) within `amplification` times their bytes.

    Gaps of up to `near` bytes are bridged whatever that comes to.
    """
    distinct = distinct_of(sample_ids)
    shard, start = index.shard[distinct], index.offset[distinct]
    stop = start + index.nbytes[distinct]
    needed = int((stop - start).sum())
    joinable = np.flatnonzero(shard[1:] == shard[:-1])
    gaps = start[joinable + 1] - stop[joinable]
    by_size = np.argsort(gaps, kind="stable")
    afforded = np.searchsorted(np.cumsum(gaps[by_size]), (amplification - 1) * needed, side="right")
    bridged = max(afforded, np.searchsorted(gaps[by_size], near, side="right") if near else 0)
    cut = np.ones(len(distinct) + 1, bool)
    cut[joinable[by_size[:bridged]] + 1] = False
    first = np.flatnonzero(cut)
    last = first[1:] - 1
    return Reads(shard[first[:-1]], start[first[:-1]], stop[last], distinct, first, needed)


@dataclass(frozen=True)
class ReadFigures:
    """What the reads of a window come to, on one machine."""

    fetched: int  # bytes, gaps included; what two stretches need counts twice
    needed: int  # bytes of the window's distinct samples
    requests: int
    shards: int  # touched

    @property
    def amplification(self) -> float:
        return self.fetched / self.needed if self.needed else 1.0


@dataclass(frozen=True)
class ReadPlanner:
    """Plans what a machine reads of a window: its share of each batch."""

    index: ShardIndex
    plan: Callable[[NDArray[np.int64]], Reads]  # of the samples of a stretch; a store's, who knows what reading costs
    shares: BatchShares

    def __call__(self, window: Window) -> tuple[list[Reads], ReadFigures]:
        """The reads of each stretch, some perhaps of nothing, and what they come to."""
        pieces = zip(window.stretches[:-1].tolist(), window.stretches[1:].tolist(), strict=True)
        reads = [self.plan(self._ours(window, first, last)) for first, last in pieces]
        return reads, ReadFigures(
            fetched=sum(part.fetched for part in reads),
            needed=self._needed(window),
            requests=sum(len(part.start) for part in reads),
            shards=len(distinct_of(np.concatenate([part.shard for part in reads]))),
        )

    def _ours(self, window: Window, first: int, last: int) -> NDArray[np.int64]:
        """The samples of this machine's draws among [first, last) of the window."""
        start, stop = self.shares.machine_share
        if (start, stop) == (0, self.shares.batch_size):
            return window.sample_ids[first:last]
        offsets = np.arange(window.first_draw + first, window.first_draw + last) % self.shares.batch_size
        return window.sample_ids[first:last][(offsets >= start) & (offsets < stop)]

    def _needed(self, window: Window) -> int:
        """Bytes of the distinct samples of this machine's draws; a chunk at a time, for windows of millions."""
        ids = np.sort(self._ours(window, 0, len(window.sample_ids)))
        needed = 0
        for start in range(0, len(ids), _CHUNK):
            before = ids[start - 1] if start else -1
            chunk = ids[start : start + _CHUNK]
            needed += int(self.index.nbytes[chunk[np.diff(chunk, prepend=before) != 0]].sum())
        return needed


def distinct_of(numbers: NDArray[np.integer]) -> NDArray[np.integer]:
    """Those that are there, ascending; none is negative. np.unique may hash them, which is slow for millions."""
    ordered = np.sort(numbers)
    return ordered[np.diff(ordered, prepend=-1) != 0]
