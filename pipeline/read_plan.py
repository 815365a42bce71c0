"""Which byte ranges to read for the samples of a stretch of draws: each sample once, small gaps included.

A window is read stretch by stretch. The processes of one machine plan the same ranges, so that they can share what they
read.

A request costs about as much as reading some hundred KB, but bytes that nobody needs are wasted. So the smallest gaps
are bridged first, as long as the bytes read stay below a given multiple of the bytes needed: no other choice makes
fewer requests within that limit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from mimcl.pipeline.batch_shares import BatchShares
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.plan import Window

AMPLIFICATION = 1.15  # bytes read over bytes needed, at most
_CHUNK = 1 << 18  # draws processed at once

Integer = TypeVar("Integer", bound=np.integer)


@dataclass(frozen=True, eq=False)
class ReadPlan:
    """R disjoint byte ranges [start, stop) in shards, in the order of the index, and the samples they hold."""

    shard: NDArray[np.int32]  # (R,)
    start: NDArray[np.int64]  # (R,)
    stop: NDArray[np.int64]  # (R,)
    sample_ids: NDArray[np.int64]  # sorted, unique: the samples needed, and whole ones that cost less than a cut
    first: NDArray[np.int64]  # (R + 1,): range k holds sample_ids[first[k] : first[k + 1]]
    needed: int  # bytes of the samples that are needed

    @property
    def fetched(self) -> int:
        """Bytes read, gaps included."""
        return int((self.stop - self.start).sum())


def plan_reads(
    index: ShardIndex, sample_ids: NDArray[np.int64], amplification: float = AMPLIFICATION, near: int = 0
) -> ReadPlan:
    """Plan the fewest ranges that hold the samples (any order, repeats allowed).

    The ranges have at most `amplification` times the samples' bytes, except that gaps of up to `near` bytes are always
    bridged.
    """
    distinct = sorted_unique(sample_ids)
    shard, start = index.shard[distinct], index.offset[distinct]
    stop = start + index.nbytes[distinct]
    needed = int((stop - start).sum())
    joinable = np.flatnonzero(shard[1:] == shard[:-1])
    gaps = start[joinable + 1] - stop[joinable]
    by_size = np.argsort(gaps, kind="stable")
    affordable = np.searchsorted(np.cumsum(gaps[by_size]), (amplification - 1) * needed, side="right")
    bridged = max(affordable, np.searchsorted(gaps[by_size], near, side="right") if near else 0)
    cut = np.ones(len(distinct) + 1, bool)
    cut[joinable[by_size[:bridged]] + 1] = False
    first = np.flatnonzero(cut)
    last = first[1:] - 1
    return ReadPlan(shard[first[:-1]], start[first[:-1]], stop[last], distinct, first, needed)


@dataclass(frozen=True)
class ReadStats:
    """The reads of a window on one machine, in sum."""

    fetched: int  # bytes, gaps included; bytes needed by two stretches count twice
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
    plan_stretch: Callable[[NDArray[np.int64]], ReadPlan]  # the store's, which knows what reading costs
    shares: BatchShares

    def __call__(self, window: Window) -> tuple[list[ReadPlan], ReadStats]:
        """Returns the reads of each stretch, which may be empty, and their statistics."""
        bounds = zip(window.stretches[:-1].tolist(), window.stretches[1:].tolist(), strict=True)
        plans = [self.plan_stretch(self._sample_ids(window, first, last)) for first, last in bounds]
        return plans, ReadStats(
            fetched=sum(plan.fetched for plan in plans),
            needed=self._needed(window),
            requests=sum(len(plan.start) for plan in plans),
            shards=len(sorted_unique(np.concatenate([plan.shard for plan in plans]))),
        )

    def _sample_ids(self, window: Window, first: int, last: int) -> NDArray[np.int64]:
        """The samples of this machine's draws among [first, last) of the window."""
        start, stop = self.shares.machine_share
        if (start, stop) == (0, self.shares.batch_size):
            return window.sample_ids[first:last]
        offsets = np.arange(window.first_draw + first, window.first_draw + last) % self.shares.batch_size
        return window.sample_ids[first:last][(offsets >= start) & (offsets < stop)]

    def _needed(self, window: Window) -> int:
        """Bytes of the distinct samples of this machine's draws; by chunks, since windows may have millions."""
        ids = np.sort(self._sample_ids(window, 0, len(window.sample_ids)))
        needed = 0
        for start in range(0, len(ids), _CHUNK):
            previous = ids[start - 1] if start else -1
            chunk = ids[start : start + _CHUNK]
            needed += int(self.index.nbytes[chunk[np.diff(chunk, prepend=previous) != 0]].sum())
        return needed


def sorted_unique(numbers: NDArray[Integer]) -> NDArray[Integer]:
    """Sorted unique values of a non-negative array. np.unique may hash them, which is slow for millions."""
    ordered = np.sort(numbers)
    return ordered[np.diff(ordered, prepend=-1) != 0]
