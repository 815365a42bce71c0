"""Ranges to read: each sample once, small gaps included, within the limit."""

from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest

from mimcl.pipeline.read_plan import plan_reads


def index_of(shard, offset, nbytes):
    return SimpleNamespace(
        shard=np.array(shard, np.int32), offset=np.array(offset, np.int64), nbytes=np.array(nbytes, np.int64)
    )


@pytest.fixture(scope="module")
def index():
    """400 samples in 5 shards, records of irregular length."""
    rng = np.random.default_rng(3)
    shard = np.repeat(np.arange(5), 80)
    nbytes = rng.integers(100, 3000, 400)
    starts = np.concatenate([np.cumsum(nbytes[shard == k] + 1024) for k in range(5)]) - nbytes
    return index_of(shard, starts, nbytes)


@pytest.mark.parametrize("count", [0, 1, 2, 17, 150, 1000])
@pytest.mark.parametrize("amplification", [1.0, 1.15, 3.0])
def test_each_sample_lies_in_one_range_within_the_limit(index, count, amplification):
    drawn = np.random.default_rng(count).integers(0, 400, count)
    reads = plan_reads(index, drawn, amplification)
    np.testing.assert_array_equal(reads.sample_ids, np.unique(drawn))
    assert reads.needed == index.nbytes[reads.sample_ids].sum()
    assert reads.needed <= reads.fetched <= amplification * reads.needed
    for number, (shard, start, stop) in enumerate(zip(reads.shard, reads.start, reads.stop, strict=True)):
        held = reads.sample_ids[reads.first[number] : reads.first[number + 1]]
        assert (index.shard[held] == shard).all()
        assert index.offset[held[0]] == start
        assert index.offset[held[-1]] + index.nbytes[held[-1]] == stop
    order = list(zip(reads.shard.tolist(), reads.start.tolist(), strict=True))
    assert order == sorted(order)


def test_no_other_choice_makes_fewer_requests():
    index = index_of([0, 0, 0, 0, 1, 1], [512, 1700, 5000, 6500, 512, 3000], [1000, 1000, 1000, 1000, 1000, 1000])
    gaps = [188, 2300, 500, None, 1488]  # behind each sample
    for amplification in (1.0, 1.05, 1.13, 1.4, 2.0):
        best = min(
            6 - sum(bridged)
            for bridged in product((0, 1), repeat=5)
            if not bridged[3]
            and sum(gap for gap, taken in zip(gaps, bridged, strict=True) if taken) <= 6000 * (amplification - 1)
        )
        assert len(plan_reads(index, np.arange(6), amplification).start) == best
