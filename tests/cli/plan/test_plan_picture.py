"""The picture of a plan: its axes span the whole run and have numbers, for runs of any length."""

import math

import numpy as np
import pytest

from mimcl.cli.config import Config
from mimcl.cli.plan.plan_picture import log_ticks, padded, plan_figure
from mimcl.cli.plan.planned_run import PlannedRun
from mimcl.curriculum.forecast import WindowForecast
from mimcl.curriculum.resolution import resolution

SAMPLES, WINDOW = 400, 128
ONE_SIDE = resolution(None, 64, 8, SAMPLES, 8)


def planned(temperatures, draws) -> PlannedRun:
    """A run of these windows, the last one cut at `draws`."""
    forecasts = []
    for n, tau in enumerate(temperatures):
        first = n * WINDOW
        of_window = min(WINDOW, draws - first), 80.0, 90.0, 0.2, 3
        forecasts.append(WindowForecast(n, first, first / SAMPLES, tau, 0.3, "curriculum", 0.5, *of_window))
    return PlannedRun("proto", Config(), SAMPLES, draws, WINDOW, len(forecasts), "", [], forecasts, ONE_SIDE)


@pytest.mark.parametrize(
    ("temperatures", "draws"),
    [
        ([0.15], 32),
        ([0.06, 0.08], 200),
        ([0.06 * 1.2**n for n in range(10)], 1216),
        ([1e-4 * 1.5**n for n in range(50)], 50 * WINDOW),
        ([0.15] * 5, 5 * WINDOW),
        ([0.1, 0.2, math.inf, math.inf], 4 * WINDOW - 5),
    ],
    ids=["one step", "two windows", "three epochs", "many", "constant", "then uniform"],
)
def test_the_axes_span_the_run_and_have_numbers(temperatures, draws):
    figure = plan_figure([planned(temperatures, draws)])
    figure.draw_without_rendering()
    fraction, temperature, seen = figure.axes
    end = draws / SAMPLES
    assert {axis.get_xlim() for axis in figure.axes} == {(0.0, end)}
    finite = sum(map(math.isfinite, temperatures))
    for axis, last in ((fraction, end), (temperature, min(finite * WINDOW, draws) / SAMPLES), (seen, end)):
        x = np.asarray(axis.lines[0].get_xdata())
        assert (x[0], x[-1]) == (0, last)
    low, high = temperature.get_ylim()
    labels = [label.get_text() for label in temperature.get_yticklabels() if label.get_text()]
    assert len(labels) >= 3
    assert all(low <= float(label) <= high for label in labels)
    assert low < min(temperatures)
    assert high > max(filter(math.isfinite, temperatures))


def test_plans_of_different_lengths_share_the_longest_axis():
    short, long = planned([0.1, 0.2], 2 * WINDOW), planned([0.1] * 8, 8 * WINDOW)
    for plans in ([short, long], [long, short]):
        assert {axis.get_xlim() for axis in plan_figure(plans).axes} == {(0.0, 8 * WINDOW / SAMPLES)}


def test_a_uniform_plan_has_no_temperature():
    temperature = plan_figure([planned([math.inf] * 3, 3 * WINDOW)]).axes[1]
    assert not temperature.lines
    assert [text.get_text() for text in temperature.texts] == ["uniform throughout"]


def test_a_logarithmic_axis_has_three_to_ten_ticks():
    rng = np.random.default_rng(0)
    for _ in range(5000):
        low = 10 ** rng.uniform(-7, 3)
        low, high = padded(low, low * 10 ** (9 * rng.uniform() ** 4))
        ticks = log_ticks(low, high)
        assert 3 <= len(ticks) <= 10, (low, high)
        assert low <= ticks[0] < ticks[-1] <= high
    assert log_ticks(0.05, 1.2) == [0.1, 0.3, 1.0]
    assert log_ticks(0.0005, 12) == [0.001, 0.01, 0.1, 1.0, 10.0]
