"""Plan the requests for remote samples: byte ranges or whole shards, whichever is cheaper.

A request costs as much time as REQUEST_COST bytes. So gaps up to MAX_GAP are fetched too, and a shard of which most is
needed is fetched whole.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.read_plan import ReadPlan, plan_reads
from mimcl.pipeline.remote.remote_folder import CHUNK

REQUEST_COST = 1 << 19  # bytes that take about as long to transfer as a request takes
MAX_GAP = 1 << 16  # bytes between samples that are always fetched too


def plan_requests(
    index: ShardIndex, sample_ids: NDArray[np.int64], largest_whole: int = 0, all_whole: bool = False
) -> ReadPlan:
    """Return a byte range for each request; shards of up to `largest_whole` bytes may be fetched whole.

    They are where that is cheaper for these samples or, with `all_whole`, wherever a sample is needed. A range has at
    most about CHUNK bytes, unless a single sample is larger.
    """
    reads = plan_reads(index, sample_ids, near=MAX_GAP)
    touched, begin = np.unique(reads.shard, return_index=True)
    if not len(touched):
        return reads
    ends = np.searchsorted(index.shard, np.stack([touched, touched + 1]))  # rows of each shard
    start, stop = index.offset[ends[0]], index.offset[ends[1] - 1] + index.nbytes[ends[1] - 1]
    sizes = np.array([index.shards[shard]["bytes"] for shard in touched.tolist()])
    whole = sizes <= largest_whole
    whole &= all_whole or _cost(stop - start) <= np.add.reduceat(_cost(reads.stop - reads.start), begin)
    needed, opened = reads.sample_ids, np.zeros(len(reads.sample_ids), bool)
    opened[reads.first[:-1]] = True
    rows, opens = [], []
    for (row, end), (first, last), all_of_it in zip(
        ends.T.tolist(), np.searchsorted(needed, ends).T.tolist(), whole.tolist(), strict=True
    ):
        rows.append(np.arange(row, end) if all_of_it else needed[first:last])
        opens.append(np.arange(row, end) == row if all_of_it else opened[first:last])
    return replace(_cut(index, np.concatenate(rows), np.concatenate(opens)), needed=reads.needed)


def _cut(index: ShardIndex, rows: NDArray[np.int64], opens: NDArray[np.bool_]) -> ReadPlan:
    """Return the ranges that start at the rows marked in `opens`, split every CHUNK bytes."""
    start, stop = index.offset[rows], index.offset[rows] + index.nbytes[rows]
    full = (stop - start[np.flatnonzero(opens)][np.cumsum(opens) - 1]) // CHUNK
    opens = opens | (np.diff(full, prepend=0) > 0)
    first = np.append(np.flatnonzero(opens), len(rows))
    begin, last = first[:-1], first[1:] - 1
    return ReadPlan(index.shard[rows[begin]], start[begin], stop[last], rows, first, int((stop - start).sum()))


def _cost(nbytes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the cost in bytes of fetching each range."""
    return nbytes + np.ceil(nbytes / CHUNK).astype(np.int64) * REQUEST_COST
