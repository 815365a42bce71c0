"""Forecasts against the draws of real plans."""

import math

import numpy as np
import pytest

from mimcl.curriculum.balance import Balance
from mimcl.curriculum.config import CurriculumConfig
from mimcl.curriculum.forecast import forecast, temperatures
from mimcl.curriculum.learned_temperature import LearnedTemperature
from mimcl.curriculum.plan import Plan
from mimcl.pipeline.augment import hash64

N, BATCH, WINDOW, WINDOWS = 300, 16, 64, 29
SHOWN = [0, 3, 9, 14, WINDOWS - 1]


def distances(samples=N):
    found = np.random.default_rng(0).beta(2, 3, samples).astype(np.float32)
    found[: samples // 50], found[-3:] = 0, 1
    return found


def clusters(samples=N):
    """Three clusters of very different sizes; two images are in none."""
    found = np.random.default_rng(1).choice(3, samples, p=[0.7, 0.2, 0.1]).astype(np.int32)
    found[[5, 50]] = -1
    return found


def planned(seed=0, name="proto", samples=N, draws=WINDOW * WINDOWS - 3 * BATCH, batch=BATCH, **settings):
    config = CurriculumConfig(name, **{"window": WINDOW} | settings)
    given = None if name == "none" else distances(samples)
    balance = Balance.of(clusters(samples)) if config.balance else None
    sizes = {"samples": samples, "draws": draws, "batch_size": batch}
    return Plan(config, distances=given, balance=balance, seed=seed, hash64=hash64, **sizes)


def simulated(seeds, **settings):
    """Means over seeds at SHOWN of distinct in the window, distinct so far and distance; medians of max_repeats."""
    found, most = np.zeros((seeds, len(SHOWN), 3)), np.zeros((seeds, len(SHOWN)))
    for seed in range(seeds):
        plan, counts = planned(seed, **settings), np.zeros(N, int)
        for number in range(plan.windows):
            window = plan.window(number)
            counts += np.bincount(window.sample_ids, minlength=N)
            if number in SHOWN:
                place = SHOWN.index(number)
                most[seed, place] = counts.max()
                own = len(np.unique(window.sample_ids))
                found[seed, place] = own, np.count_nonzero(counts), window.distances.mean()
    return found.mean(0), np.median(most, 0)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"share": 0.5},
        {"share": 0.5, "uniform": "replacement"},
        {"share": 0.0},
        {"temp_schedule": "constant", "temperature": 0.05},
        {"temp_schedule": "constant", "temperature": 0.1, "resampling": "systematic"},
        {"name": "anti", "temp_schedule": "linear"},
        {"balance": True},
        {"balance": True, "share": 0.5},
        {"balance": True, "temp_schedule": "constant", "temperature": 0.1, "resampling": "systematic"},
        {"balance": True, "name": "anti", "temp_schedule": "linear"},
        {"name": "none"},
        {"name": "none", "uniform": "replacement"},
    ],
    ids=str,
)
def test_forecasts_are_the_means_of_real_plans(settings):
    found = forecast(planned(**settings), SHOWN)
    means, most = simulated(40, **settings)
    for row, (own, distinct, distance), repeats in zip(found, means, most, strict=True):
        assert row.window_distinct == pytest.approx(own, abs=2)  # 4 standard errors
        assert row.distinct == pytest.approx(distinct, abs=2.5)
        assert row.coverage == row.distinct / N
        assert abs(row.max_repeats - repeats) <= 1 + 0.03 * repeats
        if settings.get("name") == "none":
            assert math.isnan(row.distance)
        else:
            assert row.distance == pytest.approx(distance, abs=0.03)


def test_systematic_forecasts_are_within_a_few_percent_while_the_temperature_changes():
    found = forecast(planned(resampling="systematic"), SHOWN)
    means, most = simulated(20, resampling="systematic")
    for row, (own, distinct, _), repeats in zip(found, means, most, strict=True):
        assert row.window_distinct == pytest.approx(own, rel=0.02)
        assert row.distinct == pytest.approx(distinct, rel=0.08)
        assert abs(row.max_repeats - repeats) <= 1 + 0.03 * repeats


def test_max_repeats_of_systematic_windows_of_many_images():
    given = {"samples": 4000, "draws": 4000 * 8, "window": 128, "resampling": "systematic", "share": 0.5}
    shown = [2, 5, 60, 124, 249]
    most = np.zeros((3, len(shown)))
    for seed in range(3):
        plan, counts = planned(seed, **given), np.zeros(4000, int)
        for number in range(plan.windows):
            counts += np.bincount(plan.window(number).sample_ids, minlength=4000)
            if number in shown:
                most[seed, shown.index(number)] = counts.max()
    found = [row.max_repeats for row in forecast(planned(**given), shown)]
    np.testing.assert_allclose(found, most.mean(0), rtol=0.13, atol=0.5)


@pytest.mark.parametrize("temp_schedule", ["cosine", "constant"])
def test_max_repeats_of_systematic_windows_over_many_epochs(temp_schedule):
    given = {"samples": 1000, "draws": 20_000, "resampling": "systematic", "temp_schedule": temp_schedule}
    given |= {"temperature": 0.1} if temp_schedule == "constant" else {}
    plan, counts, found = planned(**given), np.zeros(1000, int), []
    for number in range(plan.windows):
        counts += np.bincount(plan.window(number).sample_ids, minlength=1000)
        found.append(counts.max())
    reported = [row.max_repeats for row in forecast(plan, range(plan.windows))]
    np.testing.assert_allclose(reported, found, rtol=0.07, atol=1)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "exponential", "step", "constant"])
def test_rows_have_exactly_the_temperatures_of_the_plan(schedule):
    plan = planned(temp_schedule=schedule, share=0.8)
    for row in forecast(plan, range(plan.windows)):
        window = plan.window(row.window)
        assert (row.draw, row.temperature, row.phase) == (window.first_draw, window.temperature, window.phase)
        assert row.effective_fraction == window.effective_fraction
        assert row.window_draws == len(window.sample_ids)


def test_temperatures_of_a_long_run_are_interpolated():
    plan = planned(samples=2000, draws=64 * 4000, share=0.9)
    found, some = temperatures(plan), range(0, plan.windows, 97)
    exact = np.array([plan.temperature(number) for number in some])
    assert np.isinf(found[-1])
    np.testing.assert_allclose(found[some], exact, rtol=1e-5)


def test_a_long_run_that_begins_almost_uniform():
    plan = planned(draws=WINDOW * 400, r0=0.632)
    assert np.isinf(temperatures(plan)).all()
    assert forecast(plan, [0, 399])[-1].distinct == pytest.approx(N)


def test_forecasts_do_not_depend_on_which_windows_are_shown():
    plan = planned(resampling="systematic", share=0.5, uniform="replacement")
    every = forecast(plan, range(plan.windows))
    for row in forecast(plan, SHOWN):
        other = every[row.window]
        assert row.distinct == pytest.approx(other.distinct, rel=1e-9)
        assert row.max_repeats == other.max_repeats


def test_merging_bins_hardly_changes_forecasts():
    plan = planned(samples=30_000, draws=512 * 60, batch=512, window=512)
    (last,) = forecast(plan, [plan.windows - 1])
    h, unseen = distances(30_000).astype(float), np.zeros(30_000)
    for tau in temperatures(plan):
        p = np.exp(-h / tau)
        unseen += 512 * np.log1p(-p / p.sum())
    assert last.distinct == pytest.approx(30_000 - np.exp(unseen).sum(), rel=1e-4)


def test_a_learned_temperature_is_refused():
    config = CurriculumConfig("proto", temp_schedule="learned", window=64)
    learned = LearnedTemperature(config, distances(), batch_size=16, warm=0)
    sizes = {"samples": N, "draws": 640, "batch_size": 16}
    plan = Plan(config, distances=distances(), seed=0, hash64=hash64, learned=learned, **sizes)
    with pytest.raises(ValueError, match="learned temperature"):
        forecast(plan, [0])
