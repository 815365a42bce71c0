"""Samples to reach A's accuracy: mean curves of all arms, ratios, and intervals from resampled seeds."""

import math

import numpy as np
import pytest
from helpers.pages import Page
from helpers.run_folders import BATCH, evaluation_line
from helpers.run_folders import evaluated_run as made

from mimcl.cli.report.samples_to_target import RESAMPLES, bootstrap_ratio, first_reach, samples_to_target
from mimcl.cli.report.several import arms_of
from mimcl.cli.report.writer import write_report


def test_first_reach_interpolates_linearly():
    x, y = np.array([0.0, 10, 20, 30]), np.array([0.1, 0.3, 0.2, 0.5])
    heights = np.array([0.2, 0.3, 0.4, 0.05, 0.6])
    expected = [5, 10, 20 + 10 * 2 / 3, 0, math.nan]
    np.testing.assert_allclose([first_reach(x, y, height) for height in heights], expected)
    np.testing.assert_allclose(first_reach(x, np.stack([y] * 5), heights), expected)


def test_mean_curves_of_all_arms_are_compared_with_the_end_of_a(tmp_path):
    slow = [made(tmp_path, f"a{n}", (0.1, 0.2, 0.3, 0.38 + n / 25), (1.0,) * 4, seed=n) for n in range(2)]
    fast = [made(tmp_path, "b0", (0.2, 0.4, 0.5, 0.6), (1.0,) * 4, 160.0, optim__base_lr=0.5)]
    fast += [made(tmp_path, "b1", (0.3, 0.5, 0.5, 0.6), (1.0,) * 4, 160.0, optim__base_lr=0.5, seed=1)]
    never = [made(tmp_path, "c0", (0.1, 0.1, 0.2, 0.39), (1.0,) * 4, optim__base_lr=0.25)]
    found = samples_to_target(arms_of([*slow, *fast, *never], ["A", "A", "B", "B", "C"]))
    assert (found.target, found.draws) == (pytest.approx(0.4), 40 * BATCH)
    own, ahead, behind = found.arms
    assert (own.draws, own.ratio, own.interval) == (40 * BATCH, 1, None)
    needed = 10 + 10 * (0.4 - 0.25) / (0.45 - 0.25)  # on the mean curve 0.25, 0.45, ...
    assert ahead.draws == pytest.approx(needed * BATCH)
    assert ahead.ratio == pytest.approx(40 / needed)
    assert ahead.time_ratio == pytest.approx(ahead.ratio / 2)  # at half the rate
    assert ahead.interval.low < ahead.ratio < ahead.interval.high
    assert ahead.interval.reached == 1
    assert math.isnan(behind.draws)
    assert math.isnan(behind.ratio)
    assert behind.interval is None  # of one seed


def test_a_seed_that_never_reaches_the_target_counts(tmp_path):
    own = [made(tmp_path, f"a{n}", (0.1, 0.2, 0.4), seed=n) for n in range(2)]
    other = [made(tmp_path, f"b{n}", nns, seed=n) for n, nns in enumerate([(0.2, 0.4, 0.4), (0.1, 0.2, 0.3)])]
    found = samples_to_target(arms_of([*own, *other], ["A", "A", "B", "B"])).arms[1]
    assert math.isnan(found.draws)  # the mean ends at 0.35
    assert found.interval.reached == pytest.approx(1 / 4, abs=0.03)  # the first seed twice
    assert (found.interval.low, found.interval.high) == (0, pytest.approx(30 / 20))


def test_the_end_of_a_long_curve_is_the_target(tmp_path):
    rising = np.linspace(0.1, 0.5, 801)
    runs = [made(tmp_path, f"a{n}", rising + n / 100, seed=n) for n in range(2)]
    found = samples_to_target(arms_of([*runs, made(tmp_path, "b", rising)], ["A", "A", "B"]))
    assert found.target == pytest.approx(0.505)
    assert found.draws == 8010 * BATCH


def test_an_untrained_encoder_is_the_first_point(tmp_path):
    lines = [evaluation_line(draw, nn, "knn") for draw, nn in ((640, 0.4), (1280, 0.5))]
    for line in lines:
        line["values"]["untrained_nn"] = 0.2
    found = samples_to_target(
        arms_of([made(tmp_path, name, lines=lines, seed=n) for n, name in enumerate("ab")], ["a", "b"])
    )
    assert found.draws == 1280
    assert found.arms[1].ratio == pytest.approx(1)
    worse = [made(tmp_path, "c", lines=[{**line, "values": {"nn": 0.1, "untrained_nn": 0.3}} for line in lines])]
    assert samples_to_target(arms_of(worse)).draws == 0


def test_an_arm_without_a_curve_is_not_evaluated(tmp_path):
    own = made(tmp_path, "a", (0.1, 0.2))
    found = samples_to_target(arms_of([own, made(tmp_path, "b", (0.4,))], ["A", "B"])).arms[1]
    assert not found.evaluated
    assert samples_to_target(arms_of([made(tmp_path, "c", (0.4,))])) is None


def test_a_curve_that_starts_above_the_target_gives_a_bound(tmp_path):
    own, early = made(tmp_path, "a", (0.1, 0.3, 0.3)), made(tmp_path, "b", (0.4, 0.5), optim__base_lr=0.5)
    found = samples_to_target(arms_of([own, early], ["A", "B"]))
    assert not found.at_most
    assert (found.arms[1].at_most, found.arms[1].bound, found.arms[1].ratio) == (True, "≥", pytest.approx(2))
    page = Page(write_report([own.folder, early.folder], tmp_path / "page.html", labels=["A", "B"]))
    assert "≤ 640" in page.text
    assert "≥ 2" in page.text
    both = samples_to_target(arms_of([early, early], ["B", "again"]))
    assert not both.at_most  # its end is above its first point
    falling = made(tmp_path, "c", (0.4, 0.3))
    late = samples_to_target(arms_of([falling, own, falling], ["C", "A", "again"]))
    assert late.at_most
    assert (late.arms[1].bound, late.arms[2].bound) == ("≤", "")
    assert math.isnan(late.arms[2].ratio)


@pytest.mark.parametrize(("speed", "seeds", "least"), [(1.0, 3, 0.75), (2.0, 3, 0.75), (2.0, 10, 0.9)])
def test_simulated_arms_have_the_expected_ratio(speed, seeds, least):
    """Learning curves with noise per seed and per evaluation."""
    rng = np.random.default_rng(seeds)
    x = np.linspace(0, 1000, 41)

    def arm(faster):
        noise = 0.01 * rng.standard_normal((seeds, 1)) + 0.005 * rng.standard_normal((seeds, len(x)))
        return 0.2 + 0.3 * (1 - np.exp(-2 * faster * x / 1000)) + noise

    ratios, held = [], []
    for _ in range(150):
        own, other = arm(1.0), arm(speed)
        target = own.mean(axis=0)[-1]
        ratio = first_reach(x, own.mean(axis=0), target) / first_reach(x, other.mean(axis=0), target)
        ratios.append(np.nan_to_num(ratio))
        interval = bootstrap_ratio(x, own, x, other)
        held.append(interval.low <= speed <= interval.high)
    if speed == 1:  # a half of identical arms ends below A
        ratios = np.array(ratios)
        assert 0.4 < (ratios >= 0.98).mean() < 0.65
        assert 0.9 < np.median(ratios[ratios > 0]) < 1.12
    else:
        assert np.median(ratios) == pytest.approx(speed, rel=0.05)
    assert np.mean(held) >= least


def test_resampling_is_deterministic():
    rng = np.random.default_rng(0)
    x, y = np.arange(50.0), np.linspace(0, 1, 50) + 0.1 * rng.standard_normal((3, 50))
    assert bootstrap_ratio(x, y, x, y[::-1]) == bootstrap_ratio(x, y, x, y[::-1])
    assert bootstrap_ratio(x, y, x, y).reached * RESAMPLES == pytest.approx(RESAMPLES * 0.5, rel=0.5)
