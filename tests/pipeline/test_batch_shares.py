"""The shares of a batch partition it, between groups and without empty micro-batches, or are refused."""

import itertools

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mimcl.pipeline.batch_shares import BatchShares


def micro_batches(batch_size, micro_batch_size, rank=0, world_size=1, group_size=1):
    return BatchShares(batch_size, micro_batch_size, rank, world_size, group_size=group_size).micro_batches


@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 400))
def test_micro_batches_partition_the_batch(batch_size, world_size, micro_batch_size):
    world_size = min(world_size, batch_size)
    assume(micro_batch_size > 1 or batch_size % world_size == 0)
    shares = [micro_batches(batch_size, micro_batch_size, rank, world_size) for rank in range(world_size)]
    pieces = [piece for share in shares for piece in share]
    assert pieces[0][0] == 0
    assert pieces[-1][1] == batch_size
    assert all(a[1] == b[0] for a, b in itertools.pairwise(pieces))
    assert len({len(share) for share in shares}) == 1
    assert min(stop - start for start, stop in pieces) >= 1
    assert max(stop - start for start, stop in pieces) <= micro_batch_size
    for rank, share in enumerate(shares):
        bounds = rank * batch_size // world_size, (rank + 1) * batch_size // world_size
        assert (share[0][0], share[-1][1]) == bounds


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize(("batch_size", "micro_batch_size", "group_size"), [(96, 32, 8), (96, 33, 8), (64, 16, 4)])
def test_shares_are_cut_between_groups(batch_size, micro_batch_size, group_size, world_size):
    shares = [micro_batches(batch_size, micro_batch_size, rank, world_size, group_size) for rank in range(world_size)]
    in_groups = [
        micro_batches(batch_size // group_size, micro_batch_size // group_size, rank, world_size)
        for rank in range(world_size)
    ]
    assert shares == [tuple((group_size * a, group_size * b) for a, b in share) for share in in_groups]
    assert max(stop - start for share in shares for start, stop in share) <= micro_batch_size


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((96, 64, 0, 1, 7), ("data.batch_size 96", "group size 7")),
        ((96, 31, 0, 1, 32), ("data.micro_batch_size 31", "group size 32")),
        ((96, 32, 0, 4, 32), ("data.batch_size 96", "groups of 32 draws", "4 processes")),
        ((96, 32, 0, 2, 32), ("data.micro_batch_size 32", "96 draws", "2 processes", "64 or more")),
        ((3, 8, 0, 4), ("data.batch_size 3", "draws", "4 processes")),
        ((3, 1, 0, 2), ("data.micro_batch_size 1", "3 draws", "2 processes")),
    ],
)
def test_sizes_that_do_not_fit_are_refused(arguments, named):
    with pytest.raises(ValueError, match=r"data\.") as refused:
        micro_batches(*arguments)
    assert [token for token in named if token not in str(refused.value)] == []


@pytest.mark.parametrize(("world_size", "local_size"), [(1, 1), (4, 2), (5, 2), (6, 6)])
def test_a_machine_has_the_shares_of_its_ranks(world_size, local_size):
    for rank in range(world_size):
        first = rank - rank % local_size
        ranks = range(first, min(first + local_size, world_size))
        shares = [micro_batches(96, 16, one, world_size, 8) for one in ranks]
        found = BatchShares(96, 16, rank, world_size, local_size, 8).machine_share
        assert found == (shares[0][0][0], shares[-1][-1][1])
