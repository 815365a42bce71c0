"""Balance: every cluster has its mass at every temperature, and r(tau) is that of the balanced probabilities."""

import math

import numpy as np
import pytest

from mimcl.curriculum.balance import Balance
from mimcl.curriculum.config import CurriculumConfig
from mimcl.curriculum.difficulty import Difficulty
from mimcl.curriculum.permutation import KeyedPermutation
from mimcl.curriculum.plan import Plan
from mimcl.curriculum.temperature import effective_fraction
from mimcl.pipeline.augment import hash64

PROTO, ANTI = CurriculumConfig("proto"), CurriculumConfig("anti")


def images(n=3000, seed=0):
    """Distances and clusters of very different sizes; a few images are in none."""
    rng = np.random.default_rng(seed)
    cluster = rng.choice(6, n, p=[0.6, 0.2, 0.1, 0.05, 0.04, 0.01]).astype(np.int32)
    cluster[:5] = -1
    distances = rng.beta(2, 2, n).astype(np.float32)
    distances[:5] = 1
    return distances, cluster


def probabilities(config, distances, balance, tau):
    """p_i by the formula, image by image."""
    h = config.hardness(distances.astype(np.float64))
    p = np.zeros(len(h))
    for number, mass in enumerate(balance.mass):
        inside = balance.cluster == number
        weights = np.exp(-(h[inside] - h[inside].min()) / tau)
        p[inside] = mass * weights / weights.sum()
    return p


@pytest.mark.parametrize("config", [PROTO, ANTI], ids=["proto", "anti"])
@pytest.mark.parametrize("tau", [0.03, 0.2, 1.0, math.inf])
def test_images_are_as_wide_as_their_balanced_probability(config, tau):
    distances, cluster = images()
    balance = Balance.of(cluster)
    p = probabilities(config, distances, balance, tau)
    points = (np.arange(200_000) + 0.5) / 200_000
    found = Difficulty(config, distances, balance).find(points, tau)
    np.testing.assert_allclose(np.bincount(found, minlength=len(p)) / len(points), p, atol=1e-5)
    mass = np.bincount(cluster[found], minlength=6) / len(points)
    np.testing.assert_allclose(mass, 1 / 6, atol=5e-4)


@pytest.mark.parametrize("tau", [0.03, 0.2, 1.0, math.inf])
def test_the_effective_fraction_is_that_of_the_balanced_probabilities(tau):
    distances, cluster = images()
    balance = Balance.of(cluster)
    expected = effective_fraction(probabilities(PROTO, distances, balance, tau))
    assert Difficulty(PROTO, distances, balance).curve(tau) == pytest.approx(expected, abs=1e-4)


def test_the_fraction_at_infinite_temperature_is_below_that_of_equal_images_and_is_reached():
    distances, cluster = images()
    curve = Difficulty(PROTO, distances, Balance.of(cluster)).curve
    assert curve.uniform < 0.5 < Difficulty(PROTO, distances).curve.uniform
    assert curve.inverse(curve.uniform) == math.inf
    assert curve(curve.inverse(0.3)) == pytest.approx(0.3, abs=1e-6)


def test_an_order_of_the_images_changes_where_they_lie_not_how_wide_they_are():
    distances, cluster = images()
    difficulty = Difficulty(PROTO, distances, Balance.of(cluster))
    points = (np.arange(100_000) + 0.5) / 100_000
    order = KeyedPermutation(len(distances), 7, hash64)
    plain = np.bincount(difficulty.find(points, 0.2), minlength=len(distances))
    ordered = np.bincount(order(difficulty.find(points, 0.2, order)), minlength=len(distances))
    assert abs(plain - ordered).max() <= 1


def test_masses_of_two_levels_and_of_empty_clusters():
    cluster = np.array([0, 0, 0, 1, 3, 3, -1], np.int32)
    np.testing.assert_allclose(Balance.of(cluster).mass, [1 / 3, 1 / 3, 0, 1 / 3])
    parents = np.array([0, 0, 1, 1, 2], np.int32)  # cluster 2 and 4 are empty, and with 4 its whole group
    np.testing.assert_allclose(Balance.of(cluster, parents).mass, [1 / 4, 1 / 4, 0, 1 / 2, 0])


def test_without_a_cluster_there_is_nothing_to_balance():
    with pytest.raises(ValueError, match="nothing to balance"):
        Balance.of(np.full(5, -1, np.int32))


@pytest.mark.parametrize("resampling", ["multinomial", "systematic"])
def test_a_plan_draws_every_cluster_equally_often_until_the_curriculum_ends(resampling):
    distances, cluster = images()
    config = CurriculumConfig("proto", resampling=resampling, share=0.5, balance=True)
    sizes = {"samples": len(distances), "draws": 60_000, "batch_size": 100}
    plan = Plan(config, distances=distances, balance=Balance.of(cluster), seed=3, hash64=hash64, **sizes)
    drawn = np.concatenate([plan.window(number).sample_ids for number in range(plan.windows)])
    early, late = cluster[drawn[: plan.curriculum_draws]], drawn[plan.curriculum_draws :]
    assert (early >= 0).all()
    np.testing.assert_allclose(np.bincount(early) / len(early), 1 / 6, rtol=0.05)
    assert {*np.bincount(late, minlength=len(distances)).tolist()} == {10}  # 30,000 draws in whole passes


def test_balance_does_not_go_with_a_learned_temperature():
    with pytest.raises(ValueError, match="balance"):
        CurriculumConfig("proto", temp_schedule="learned", balance=True)
