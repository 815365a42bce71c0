"""Paired differences: known values, and coverage of the interval against simulated images."""

import numpy as np
import pytest

from mimcl.cli.demo.paired import paired_difference


def test_it_counts_only_the_images_on_which_the_two_differ():
    correct = np.array([True] * 50 + [True] * 8 + [False] * 3 + [False] * 39)
    other = np.array([True] * 50 + [False] * 8 + [True] * 3 + [False] * 39)
    found = paired_difference(correct, other)
    assert found.value == pytest.approx(0.05)
    assert found.standard_error == pytest.approx(np.sqrt(8 + 3 - 5**2 / 100) / 100)  # McNemar's discordant pairs
    assert found.interval == pytest.approx((0.05 - 1.96 * found.standard_error, 0.05 + 1.96 * found.standard_error))
    assert paired_difference(other, correct).value == -found.value
    assert paired_difference(correct, correct).interval == (0, 0)


def test_the_interval_covers_the_true_difference_in_95_of_100_samples():
    rng = np.random.default_rng(0)
    hard = rng.random((2000, 800))  # of the images; the same for both encoders
    both = (hard < 0.48) ^ (rng.random(hard.shape) < 0.2), (hard < 0.44) ^ (rng.random(hard.shape) < 0.2)
    true = (0.48 - 0.44) * (1 - 2 * 0.2)
    inside = [
        low <= true <= high for low, high in (paired_difference(*pair).interval for pair in zip(*both, strict=True))
    ]
    assert 0.93 < np.mean(inside) < 0.97


def test_other_images_are_refused():
    for correct, other in ((np.ones(3, bool), np.ones(2, bool)), (np.empty(0, bool), np.empty(0, bool))):
        with pytest.raises(ValueError, match="the same images"):
            paired_difference(correct, other)
