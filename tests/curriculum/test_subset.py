"""The subset curriculum: nested random subsets that are as large as the schedule's effective fraction asks."""

import numpy as np
import pytest

from mimcl.curriculum.config import CurriculumConfig
from mimcl.curriculum.difficulty import Difficulty
from mimcl.curriculum.forecast import forecast
from mimcl.curriculum.plan import Plan
from mimcl.curriculum.subset import subset_ranks
from mimcl.pipeline.augment import hash64

N = 4000


def plan_of(seed=0, draws=80_000, **settings):
    config = CurriculumConfig("subset", **settings)
    sizes = {"samples": N, "draws": draws, "batch_size": 50}
    return Plan(config, distances=subset_ranks(N, seed, hash64), seed=seed, hash64=hash64, **sizes)


def test_ranks_are_a_permutation_of_even_places_keyed_by_the_seed():
    ranks = subset_ranks(N, 0, hash64)
    np.testing.assert_allclose(np.sort(ranks), np.linspace(0, 1, N), atol=1e-6)
    assert abs(np.corrcoef(ranks, np.arange(N))[0, 1]) < 0.05
    assert abs(np.corrcoef(ranks, subset_ranks(N, 1, hash64))[0, 1]) < 0.05
    assert subset_ranks(1, 0, hash64).tolist() == [0]


@pytest.mark.parametrize("resampling", ["multinomial", "systematic"])
def test_a_window_draws_evenly_from_the_images_up_to_its_temperature(resampling):
    plan = plan_of(resampling=resampling)
    ranks = subset_ranks(N, 0, hash64)
    for number in range(0, plan.windows - 1, 20):
        window = plan.window(number)
        drawn = ranks[window.sample_ids]
        assert drawn.max() <= window.temperature
        assert drawn.mean() == pytest.approx(min(1, window.temperature) / 2, abs=0.05)
        np.testing.assert_array_equal(window.distances, drawn)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 1.0])
def test_the_effective_fraction_is_that_of_equal_draws_from_the_subset(share):
    members = np.floor(share * (N - 1)) + 1
    expected = members / N * (1 - (1 - 1 / members) ** N)
    curve = Difficulty(CurriculumConfig("subset"), subset_ranks(N, 0, hash64)).curve
    assert curve(share) == pytest.approx(expected, abs=2e-4)
    if share < 1:
        assert curve.inverse(expected) == pytest.approx(share, abs=2e-3)


def test_as_many_different_images_are_drawn_as_the_schedule_says():
    plan = plan_of(temp_schedule="constant", temperature=0.2, draws=N)
    drawn = np.concatenate([plan.window(number).sample_ids for number in range(plan.windows)])
    assert len(np.unique(drawn)) / N == pytest.approx(plan.window(0).effective_fraction, abs=0.01)


@pytest.mark.parametrize("resampling", ["multinomial", "systematic"])
def test_forecasts_are_near_a_real_plan(resampling):
    plan, seen = plan_of(resampling=resampling), set()
    shown = [0, 40, 100, 200, plan.windows - 1]
    rows = {row.window: row for row in forecast(plan, shown)}
    for number in range(plan.windows):
        window = plan.window(number)
        seen |= {*window.sample_ids.tolist()}
        if number in rows:
            assert rows[number].distinct == pytest.approx(len(seen), rel=0.08)
            assert rows[number].distance == pytest.approx(window.distances.mean(), abs=0.07)
            assert rows[number].temperature == window.temperature


@pytest.mark.parametrize("settings", [{"balance": True}, {"temp_schedule": "learned"}])
def test_what_needs_clusters_or_losses_is_refused(settings):
    with pytest.raises(ValueError, match="a random subset, on which .* has no effect"):
        CurriculumConfig("subset", **settings)
