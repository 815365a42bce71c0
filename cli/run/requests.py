"""Forecasts the requests that a run on remote data makes, and what the server's limit makes of them."""

from __future__ import annotations

import math

import numpy as np

from mimcl.cli.console import format_bytes, format_duration
from mimcl.curriculum.plan import Plan
from mimcl.pipeline.batch_shares import BatchShares
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.open_store import open_store
from mimcl.pipeline.read_plan import ReadPlanner
from mimcl.pipeline.remote.request_limit import has_request_limit, request_limit
from mimcl.pipeline.remote.shard_cache import cache_limit

_WINDOWS = 8  # that are planned for the forecast, evenly spaced


def keeps_whole_shards(plan: Plan, index: ShardIndex) -> bool:
    """Whether a run fetches shards whole, once: from a server that limits requests, if the cache has room for all."""
    return _may_keep_shards(plan, index) and _nbytes(index) <= cache_limit()


def request_lines(plan: Plan, index: ShardIndex, batch_size: int, order: str) -> list[str]:
    """Return lines about the requests of a run on one machine; none for local data.

    `order` is the one that was asked for, "auto" where it was left open.
    """
    if index.url is None:
        return []
    if whole := keeps_whole_shards(plan, index):
        lines = [f"requests: {_of_whole_shards(index)}, for whole shards, which the cache keeps"]
    else:
        requests, nbytes = _forecast(plan, index, batch_size)
        lines = [f"requests: about {requests:,} for {format_bytes(nbytes)}, minus what is cached"]
    limit = request_limit(index.url)
    if limit is None:
        return lines
    shards = len(index.shards)
    waits = math.ceil(shards / limit.requests) - 1
    needs = f"; for all shards that takes {format_duration(waits * limit.window_s)} or more" if waits else ""
    lines.append(
        f"the hub allows {limit.requests:,} requests in {limit.window_s / 60:g} minutes and counts those for addresses "
        f"only: one for each of {shards:,} shards, and again when it expires, often after an hour{needs}"
    )
    if order == "auto":
        lines.append("draws follow the order of the shards, because requests are limited; --order random mixes better")
    if not whole and _may_keep_shards(plan, index):
        room = math.ceil(_nbytes(index) / 1e9)
        lines.append(f"with MIMCL_CACHE_GB={room} or more the cache keeps all shards: {_of_whole_shards(index)} in all")
    elif order == "random":
        hours = format_duration(requests / limit.requests * limit.window_s)
        lines.append(
            "--order random makes a request for nearly every image; --order shard makes fewer. Where the hub sends the "
            f"shards itself, instead of redirecting to addresses, its limit makes that {hours}"
        )
    return lines


def _may_keep_shards(plan: Plan, index: ShardIndex) -> bool:
    """Whether it is worth fetching whole shards: not if a run draws fewer images than there are."""
    limited = index.url is not None and has_request_limit(index.url)
    return limited and plan.config.order == "shard" and plan.draws >= plan.samples


def _nbytes(index: ShardIndex) -> int:
    return sum(shard["bytes"] for shard in index.shards)


def _of_whole_shards(index: ShardIndex) -> str:
    whole = open_store(index, whole_shards=True).plan_reads(np.arange(index.samples))
    return f"about {len(whole.start):,} for {format_bytes(whole.fetched)}"


def _forecast(plan: Plan, index: ShardIndex, batch_size: int) -> tuple[int, float]:
    """Return about how many requests a run makes, for how many bytes, if nothing is cached.

    Of a learned temperature only the first window is known, which stands for all.
    """
    planner = ReadPlanner(index, open_store(index).plan_reads, BatchShares(batch_size, batch_size))
    last = 0 if plan.learned else plan.windows - 1
    windows = [plan.window(number) for number in np.unique(np.linspace(0, last, _WINDOWS).astype(int)).tolist()]
    found = [planner(window)[1] for window in windows]
    runs = plan.draws / sum(len(window.sample_ids) for window in windows)
    return round(runs * sum(stats.requests for stats in found)), runs * sum(stats.fetched for stats in found)
