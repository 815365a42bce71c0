from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from mimcl.curriculum.permutation import KeyedPermutation
from mimcl.pipeline.augment import hash64


@settings(max_examples=150, deadline=None)
@given(n=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
def test_is_a_bijection(n, key):
    assert sorted(KeyedPermutation(n, key, hash64)(np.arange(n))) == list(range(n))


@pytest.mark.parametrize("n", [2**16, 2**16 + 1, 2**17 - 1, 1_281_167])
def test_is_a_bijection_of_many(n):
    images = KeyedPermutation(n, 7, hash64)(np.arange(n))
    assert (np.bincount(images, minlength=n) == 1).all()


def test_depends_on_the_position_only():
    permutation = KeyedPermutation(100_003, 11, hash64)
    everything = permutation(np.arange(100_003))
    np.testing.assert_array_equal(permutation([70_000, 3, 99_999]), everything[[70_000, 3, 99_999]])


def test_keys_give_different_orders():
    orders = [KeyedPermutation(1000, key, hash64)(np.arange(1000)) for key in range(2)]
    assert (orders[0] == orders[1]).mean() < 0.01


@pytest.mark.parametrize("n", [3, 4])
def test_small_orders_are_equally_likely(n):
    keys = hash64(0, np.arange(4000), 0)
    seen = Counter(tuple(KeyedPermutation(n, int(key), hash64)(np.arange(n))) for key in keys)
    assert 0.001 < chisquare([seen[order] for order in permutations(range(n))]).pvalue < 0.999


def test_neighbours_are_separated_as_in_a_shuffle():
    n = 50_000
    steps = np.diff(KeyedPermutation(n, 5, hash64)(np.arange(n))) % n  # uniform in 1..n-1 for a random order
    assert 0.001 < chisquare(np.histogram(steps, 100, (0, n))[0]).pvalue < 0.999
