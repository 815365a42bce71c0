import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mimcl.curriculum.schedules import SCHEDULES
from mimcl.curriculum.temperature import EffectiveFraction, effective_fraction, p_tau, uniform_fraction


def typical_distances(n: int, seed: int = 0) -> np.ndarray:
    """Distances like those of prototypes: many exact zeros and ones, the rest in between; float32."""
    d = np.random.default_rng(seed).beta(5, 3, n).astype(np.float32)
    clusters = max(1, int(math.sqrt(n)))
    d[:clusters], d[-clusters:] = 0, 1
    return d


def test_p_tau_is_the_softmax():
    h = np.array([0.0, 0.25, 1.0])
    expected = np.exp(-h / 0.3) / np.exp(-h / 0.3).sum()
    np.testing.assert_allclose(p_tau(h, 0.3), expected, rtol=1e-14)
    np.testing.assert_array_equal(p_tau(h, math.inf), np.full(3, 1 / 3))
    np.testing.assert_array_equal(p_tau(h, 1e-9), [1, 0, 0])  # no overflow, no NaN


def test_p_tau_ignores_a_shift_of_h():
    h = np.linspace(0.2, 0.7, 100_001)
    np.testing.assert_allclose(p_tau(h, 0.01), p_tau(h - 0.2, 0.01), rtol=1e-9)


def test_effective_fraction_by_its_definition():
    p = p_tau(np.linspace(0, 1, 50), 0.2)
    assert effective_fraction(p) == pytest.approx(np.mean(1 - (1 - p) ** 50), rel=1e-12)
    assert effective_fraction(np.array([1.0, 0.0])) == 0.5


@pytest.mark.parametrize(("n", "expected"), [(1, 1.0), (2, 0.75), (3, 19 / 27), (20_000_000, 0.63212056)])
def test_uniform_fraction(n, expected):
    assert uniform_fraction(n) == pytest.approx(expected, abs=1e-8)


def test_float32_would_be_wrong_at_imagenet_size():
    n = 1_281_167
    p = np.full(n, 1 / n, np.float32)
    assert np.mean(1 - (1 - p) ** np.float32(n), dtype=np.float64) == pytest.approx(0.6294, abs=2e-4)
    assert effective_fraction(p_tau(np.zeros(n, np.float32), 0.1)) == pytest.approx(0.63212, abs=1e-5)


def test_twenty_million_images():
    h = (np.arange(20_000_000, dtype=np.float32) / 19_999_999) ** 2
    assert effective_fraction(p_tau(h, math.inf)) == pytest.approx(0.63212, abs=1e-5)
    curve = EffectiveFraction(h)
    assert curve.uniform == pytest.approx(0.63212, abs=1e-5)
    for target in (0.001, 0.15, 0.6):
        assert effective_fraction(p_tau(h, curve.inverse(target))) == pytest.approx(target, abs=1e-4)


@pytest.mark.parametrize("power", [0.5, 1, 2, 4, 8])  # of the distances: bunched high, as they are, bunched low
@pytest.mark.parametrize("anti", [False, True])
def test_inverse_is_exact_on_the_images(power, anti):
    d = typical_distances(200_000) ** np.float32(power)
    h = 1 - d if anti else d
    curve = EffectiveFraction(h)
    for target in (0.0025, 0.003, 0.01, 0.05, 0.15, 0.3, 0.5, 0.6, 0.631):
        assert abs(effective_fraction(p_tau(h, curve.inverse(target))) - target) < 1e-4


@pytest.mark.parametrize("n", [2, 3, 5, 40])
def test_inverse_of_a_few_images(n):
    h = np.linspace(0, 1, n)
    curve = EffectiveFraction(h)
    assert curve.lowest == pytest.approx(1 / n)
    for target in np.linspace(curve.lowest + 1e-3, curve.uniform - 2e-3, 7):
        assert effective_fraction(p_tau(h, curve.inverse(target))) == pytest.approx(target, abs=1e-8)


def test_target_below_the_lowest_is_clamped():
    h = typical_distances(10_000)  # 100 prototypes: r(tau -> 0) is just below 100 / 10,000
    curve = EffectiveFraction(h)
    assert curve.lowest == pytest.approx(0.01, rel=1e-3)
    tau = curve.inverse(0.001)
    assert 0 < tau == curve.inverse(curve.lowest) <= curve.inverse(curve.lowest + 1e-6)
    assert p_tau(h, tau)[:100].sum() == pytest.approx(1, rel=1e-12)


def test_target_near_all_data_is_uniform():
    curve = EffectiveFraction(typical_distances(10_000))
    assert curve.inverse(curve.uniform) == curve.inverse(curve.uniform - 0.9e-3) == math.inf
    assert math.isfinite(curve.inverse(curve.uniform - 1.1e-3))
    # The widest distribution of all has the highest temperature there; the search must reach it.
    halves = EffectiveFraction(np.repeat([0.0, 1.0], 500))
    assert halves(halves.inverse(halves.uniform - 1.1e-3)) == pytest.approx(halves.uniform - 1.1e-3, abs=1e-8)


def test_equal_distances_are_an_error():
    with pytest.raises(ValueError, match="10 distances are equal"):
        EffectiveFraction(np.full(10, 0.5, np.float32))


@settings(max_examples=60, deadline=None)
@given(
    h=st.lists(st.floats(0, 1, width=32), min_size=2, max_size=60).filter(lambda h: max(h) - min(h) > 1e-3),
    taus=st.tuples(st.floats(1e-4, 20), st.floats(1e-4, 20)),
    targets=st.tuples(st.floats(0, 0.75), st.floats(0, 0.75)),
)
def test_r_and_its_inverse_rise(h, taus, targets):
    h = np.array(h, np.float32)
    curve = EffectiveFraction(h)
    rounding = 1e-12
    assert effective_fraction(p_tau(h, min(taus))) <= effective_fraction(p_tau(h, max(taus))) + rounding
    assert curve(min(taus)) <= curve(max(taus)) + rounding
    assert curve.lowest - rounding <= curve(min(taus)) <= curve.uniform + rounding
    assert curve.inverse(min(targets)) <= curve.inverse(max(targets))


def test_inverse_rises_between_close_targets():
    curve = EffectiveFraction(typical_distances(50_000))
    taus = [curve.inverse(target) for target in 0.3 + 1e-6 * np.arange(50)]
    assert (np.diff(taus) > 0).all()


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_rise_from_r0_to_all(name):
    r = [SCHEDULES[name](t, 0.15, 0.632) for t in np.linspace(0, 1, 101)]
    assert r[0] == pytest.approx(0.15)
    assert r[-1] == pytest.approx(0.632)
    assert (np.diff(r) >= 0).all()


def test_shapes_of_the_schedules():
    def at(name, *times):
        return [SCHEDULES[name](t, 0.1, 0.5) for t in times]

    assert at("linear", 0.25, 0.5) == pytest.approx([0.2, 0.3])
    assert at("cosine", 0.25, 0.5, 0.75) == pytest.approx([0.3 - 0.2 * math.sqrt(0.5), 0.3, 0.3 + 0.2 * math.sqrt(0.5)])
    assert at("exponential", 0.5) == pytest.approx([math.sqrt(0.05)])
    third = 0.4 / 3
    assert at("step", 0, 0.2499, 0.25, 0.4999, 0.5, 0.7499) == pytest.approx(
        [0.1, 0.1, 0.1 + third, 0.1 + third, 0.1 + 2 * third, 0.1 + 2 * third]
    )
    assert at("step", 0.75, 0.9, 1) == pytest.approx([0.5, 0.5, 0.5])
