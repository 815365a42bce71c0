"""Shortened curves keep their mean, extremes and gaps."""

import numpy as np
import pytest

from mimcl.cli.report.curves import json_values, shorten


@pytest.mark.parametrize("n", [601, 1000, 99_999])
def test_no_extreme_is_lost(n):
    rng = np.random.default_rng(n)
    y = rng.standard_normal(n)
    y[n // 3], y[-1] = 50.0, -40.0
    curve = shorten(np.arange(n), y, 600)
    assert len(curve.x) == len(curve.y) == len(curve.low) == len(curve.high) == 600
    assert (curve.high.max(), curve.low.min()) == (50.0, -40.0)
    place = curve.high.argmax()
    assert abs(curve.x[place] - n // 3) <= n / 600
    assert (curve.low <= curve.y + 1e-12).all()
    assert (curve.y <= curve.high + 1e-12).all()


def test_points_are_means_of_equal_neighbours():
    curve = shorten(np.arange(1000), np.arange(1000.0), 100)
    np.testing.assert_allclose(curve.y, np.arange(4.5, 1000, 10))
    np.testing.assert_allclose(curve.x, curve.y)


def test_short_curves_stay_as_they_are():
    x, y = np.arange(5), np.array([1.0, np.nan, 3, 4, 5])
    curve = shorten(x, y, 5)
    np.testing.assert_array_equal(curve.y, y)
    assert curve.low is curve.high is None


def test_gaps_are_left_out():
    y = np.ones(100)
    y[1:5], y[50:60] = np.nan, np.nan
    curve = shorten(np.arange(100), y, 10)
    np.testing.assert_array_equal(curve.y, [1, 1, 1, 1, 1, np.nan, 1, 1, 1, 1])
    np.testing.assert_array_equal(curve.low, curve.y)


def test_numbers_for_the_page():
    assert json_values(np.array([1234567.0, 0.123456789, np.nan, -0.0])) == [1234567, 0.12346, None, 0]
