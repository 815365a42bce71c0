"""The order of repacking: by distance from band to band, random within a band."""

from itertools import pairwise

import numpy as np
import pytest
from scipy.stats import spearmanr

from mimcl.curriculum.banded_order import band_order
from mimcl.pipeline.augment import hash64


@pytest.mark.parametrize(("count", "bands", "size"), [(10_000, 50, 200), (1000, 256, 64), (10, 4, 64), (997, 2, 499)])
def test_bands_follow_one_another_and_are_shuffled(count, bands, size):
    distance = np.random.default_rng(0).random(count).astype(np.float32)
    order = band_order(distance, bands, 0, hash64)
    assert sorted(order) == list(range(count))
    ordered = [distance[order[first : first + size]] for first in range(0, count, size)]
    for band, following in pairwise(ordered):
        assert band.max() <= following.min()
    for band in ordered:
        if len(band) >= 100:
            assert abs(spearmanr(band, np.arange(len(band))).statistic) < 0.35
    assert not np.array_equal(order, band_order(distance, bands, 1, hash64))
    np.testing.assert_array_equal(order, band_order(distance, bands, 0, hash64))


def test_samples_of_equal_distance_are_shuffled_over_all_their_bands():
    """As for clusters without a typical image, which may hold a third of all images, ordered by class."""
    distance = np.repeat(np.float32([0.5, 1]), 5000)
    order = band_order(distance, 100, 0, hash64)
    far = order[5000:]
    assert (far >= 5000).all()
    assert abs(spearmanr(far, np.arange(5000)).statistic) < 0.05
