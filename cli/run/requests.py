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
from mimcl.pipeline.remote.request_limit import request_limit

_WINDOWS = 8  # that are planned for the forecast, evenly spaced


def request_lines(plan: Plan, index: ShardIndex, batch_size: int, order: str) -> list[str]:
    """Return lines about the requests of a run on one machine; none for local data.

    `order` is the one that was asked for, "auto" where it was left open.
    """
    if index.url is None:
        return []
    requests, nbytes = _forecast(plan, index, batch_size)
    lines = [f"requests: about {requests:,} for {format_bytes(nbytes)}, less what is cached"]
    if limit := request_limit(index.url):
        shards = len(index.shards)
        allowed = f"{limit.requests:,} requests in {limit.window_s / 60:g} minutes"
        waits = math.ceil(shards / limit.requests) - 1
        needs = f"; for all shards that takes {format_duration(waits * limit.window_s)} or more" if waits else ""
        lines.append(
            f"the hub allows {allowed} and counts those for addresses only: one for each of {shards:,} shards, and "
            f"again when it expires, often after an hour{needs}"
        )
        if order == "auto":
            lines.append("draws come in the order of the shards, since requests are limited; --order random mixes more")
        elif order == "random":
            hours = format_duration(requests / limit.requests * limit.window_s)
            lines.append(
                "--order random makes a request for nearly every image; --order shard makes fewer. Where the hub sends "
                f"the shards itself, instead of redirecting to addresses, its limit makes that {hours}"
            )
    return lines


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
