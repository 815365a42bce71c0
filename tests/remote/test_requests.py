"""Plans of requests: each sample is in one, small gaps are fetched too, shards are fetched whole if that is cheaper."""

from types import SimpleNamespace

import numpy as np
import pytest

from mimcl.pipeline.remote.range_plan import MAX_GAP, REQUEST_COST, plan_requests
from mimcl.pipeline.remote.remote_folder import CHUNK

SHARDS, ROWS = 4, 300


def made(sizes):
    """An index of SHARDS equal shards, with samples of these sizes, 1,536 bytes apart."""
    offset = np.cumsum(sizes + 1536) - sizes
    return SimpleNamespace(
        shard=np.repeat(np.arange(SHARDS, dtype=np.int32), len(sizes)),
        offset=np.tile(offset, SHARDS),
        nbytes=np.tile(sizes, SHARDS),
        shards=[{"bytes": int(offset[-1] + sizes[-1] + 1024)}] * SHARDS,
    )


def cost(start, stop):
    return (stop - start).sum() + REQUEST_COST * np.ceil((stop - start) / CHUNK).sum()


@pytest.mark.parametrize("count", [1, 30, 300, 3000])
@pytest.mark.parametrize("typical", [3_000, 110_000])
def test_every_sample_is_in_one_request_and_the_cheaper_way_is_chosen(typical, count):
    rng = np.random.default_rng(count)
    index = made(rng.integers(typical // 2, 2 * typical, ROWS))
    drawn = rng.integers(0, SHARDS * ROWS, count)
    needed = np.unique(drawn)
    ends = index.offset + index.nbytes
    by_ranges, either = plan_requests(index, drawn), plan_requests(index, drawn, 1 << 40)
    for reads in (by_ranges, either):
        assert reads.needed == index.nbytes[needed].sum()
        assert np.isin(needed, reads.sample_ids).all()
        assert (np.diff(reads.sample_ids) > 0).all()
        for number, (shard, start, stop) in enumerate(zip(reads.shard, reads.start, reads.stop, strict=True)):
            held = reads.sample_ids[reads.first[number] : reads.first[number + 1]]
            assert (index.shard[held] == shard).all()
            assert (index.offset[held[0]], ends[held[-1]]) == (start, stop)
            assert stop - start <= CHUNK + index.nbytes.max()
    np.testing.assert_array_equal(by_ranges.sample_ids, needed)
    same_shard = by_ranges.shard[1:] == by_ranges.shard[:-1]
    apart, together = by_ranges.start[1:] - by_ranges.stop[:-1], by_ranges.stop[1:] - by_ranges.start[:-1]
    assert ((apart > MAX_GAP) | (together > CHUNK))[same_shard].all()  # a small gap is left only if a request is full
    for shard in np.unique(index.shard[needed]):
        rows = np.flatnonzero(index.shard == shard)
        whole = np.isin(rows, either.sample_ids).all()
        cost_of_all = cost(index.offset[rows[:1]], ends[rows[-1:]])
        costs = [
            cost(reads.start[reads.shard == shard], reads.stop[reads.shard == shard]) for reads in (by_ranges, either)
        ]
        slack = 4 * REQUEST_COST  # cuts fall at samples
        assert costs[1] <= min(cost_of_all, costs[0]) + slack
        assert whole or costs[1] == costs[0]


def test_shards_too_large_for_the_cache_are_never_fetched_whole():
    index = made(np.full(ROWS, 3000))
    many = np.arange(0, SHARDS * ROWS, 40)  # far enough apart to be ranges of their own
    size = index.shards[0]["bytes"]
    assert len(plan_requests(index, many, size).sample_ids) == SHARDS * ROWS
    np.testing.assert_array_equal(plan_requests(index, many, size - 1).sample_ids, many)


def test_all_shards_are_whole_where_that_is_wanted():
    index = made(np.full(ROWS, 3000))
    one = np.array([ROWS + 7])  # for which the whole shard is not cheaper
    np.testing.assert_array_equal(plan_requests(index, one, 1 << 40).sample_ids, one)
    whole = plan_requests(index, one, 1 << 40, all_whole=True)
    np.testing.assert_array_equal(whole.sample_ids, np.arange(ROWS, 2 * ROWS))
    assert whole.needed == 3000


def test_a_plan_of_no_samples_is_empty():
    reads = plan_requests(made(np.full(ROWS, 3000)), np.empty(0, np.int64), 1 << 40)
    assert (len(reads.start), reads.fetched, reads.needed) == (0, 0, 0)
