"""Estimates of durations: what is ignored, what they are a median of, and how they read."""

import math

import pytest

from mimcl.cli.estimate import Estimate, estimate


def test_the_warm_up_is_left_out_and_one_hiccup_changes_nothing():
    found = estimate([90.0, 1.0, 1.1, 0.9, 1.0, 30.0, 1.0, 1.1, 0.9, 1.0, 1.0, 1.1])
    assert found is not None
    assert found.median == 1.0
    assert found.low == 0.9
    assert found.high == 1.1
    assert str(found * 300) == "about 5 min"


@pytest.mark.parametrize("times", [[], [5.0], [5.0, 1.0], [5.0, 1.0, 1.0]])
def test_there_is_none_from_a_single_pass_or_two(times):
    assert estimate(times) is None


def test_without_a_warm_up_three_are_enough():
    found = estimate(iter([3.0, 1.0, 2.0]), warm_up=0)
    assert found is not None
    assert found.median == 2.0
    assert found.low == pytest.approx(1.2)
    assert found.high == pytest.approx(2.8)


@pytest.mark.parametrize(
    ("low", "median", "high", "words"),
    [
        (100, 110, 120, "about 110 s"),
        (200, 240, 399, "about 4 min"),
        (120, 240, 300, "2 to 5 min"),
        (20, 30, 70, "20 to 70 s"),
        (29, 60, 300, "29 s to 5 min"),
        (50, 60, 300, "1 to 5 min"),
        (3 * 3600, 4 * 3600, 8 * 3600, "3 to 8 h"),
        (600, 3600, 4 * 3600, "10 min to 4 h 00 min"),
        (2 * 86400, 3 * 86400, 5.5 * 86400, "2.0 to 5.5 days"),
        (3600, 7200, 8 * 86400, "60 min to 8.0 days"),
        (0.1, 0.2, 0.9, "about 0 s"),
        (1, 2, math.inf, "about 2 s"),
    ],
)
def test_words(low, median, high, words):
    assert str(Estimate(low, median, high)) == words


def test_different_kinds_of_work_add_up():
    assert Estimate(1, 2, 3) * 60 + Estimate(60, 60, 60) == Estimate(120, 180, 240)
