"""The learned temperature: its gradient, its limits, when it is known, and its saved state."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mimcl.curriculum.config import CurriculumConfig
from mimcl.curriculum.learned_temperature import LearnedTemperature, objective_gradient
from mimcl.curriculum.plan import Plan
from mimcl.curriculum.temperature import p_tau
from mimcl.pipeline.augment import hash64

BATCH, WINDOW = 16, 64


def distances_of(n: int = 400) -> np.ndarray:
    d = np.random.default_rng(n).beta(5, 3, n).astype(np.float32)
    d[: n // 50], d[-1] = 0, 1
    return d


def make_learned(d=None, warm=0, **config) -> LearnedTemperature:
    given = {"name": "proto", "temp_schedule": "learned", "window": WINDOW, "learned_eta": 0.2, "learned_beta": 0.1}
    config = CurriculumConfig(**given | config)
    return LearnedTemperature(config, distances_of() if d is None else d, batch_size=BATCH, warm=warm)


def make_plan(learned, draws=100 * WINDOW, d=None) -> Plan:
    d = distances_of() if d is None else d
    return Plan(
        learned._config,
        samples=len(d),
        distances=d,
        draws=draws,
        batch_size=BATCH,
        seed=3,
        hash64=hash64,
        learned=learned,
    )


def outcome(step, measured=(0.0,) * 5, finite=True):
    return SimpleNamespace(step=step, finite=finite, measured=measured)


def sums_of(h, loss) -> tuple[float, ...]:
    h, loss = np.asarray(h, np.float64), np.asarray(loss, np.float64)
    return (float(len(h)), *(float(x.sum()) for x in (h, loss, h * loss, h * h)))


def windows_of(learned, number, measured, first=0):
    """Tells it of the steps of `number` windows from `first` on, each window's sums in its second step."""
    for step in range(first * 4 + 1, (first + number) * 4 + 1):
        learned.update([outcome(step, measured if step % 4 == 2 else (0.0,) * 5)])


COSTLY = sums_of([0.0, 0.5, 1.0], [0.1, 0.5, 0.9])  # far images cost much more: theta would fall
ALIKE = sums_of([0.0, 0.5, 1.0], [0.5, 0.5, 0.5])  # nothing is costly: theta rises


# The gradient


@pytest.mark.parametrize(("with_loss", "beta"), [(True, 0.0), (False, 1.0), (False, 0.3), (True, 0.3)])
@pytest.mark.parametrize("tau", [0.03, 0.2, 1.5])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_gradient_is_that_of_the_objective(with_loss, beta, tau, seed):
    """Compares with central differences of J in theta, in exact expectation, for each term and both."""
    rng = np.random.default_rng(seed)
    h, loss = rng.random(300), rng.random(300) + rng.random(300) * seed
    p = p_tau(h, tau)
    mean = (p * loss).sum()  # of the objective: a constant

    def objective(theta):
        q = p_tau(h, math.exp(theta))
        entropy = -(q * np.log(q)).sum()
        return with_loss * (q * loss).sum() / mean - beta * entropy

    numeric = (objective(math.log(tau) + 1e-5) - objective(math.log(tau) - 1e-5)) / 2e-5
    gradient = objective_gradient(np.array([1, *((p * x).sum() for x in (h, loss, h * loss, h * h))]), tau, beta)
    assert gradient.loss * with_loss + gradient.entropy == pytest.approx(numeric, rel=1e-6, abs=1e-8)
    if with_loss and not beta:
        assert gradient.loss == pytest.approx(numeric, rel=1e-6, abs=1e-8)
    if not with_loss:
        assert gradient.entropy == pytest.approx(numeric, rel=1e-6, abs=1e-8)
        assert gradient.entropy < 0


@pytest.mark.parametrize("name", ["proto", "anti"])
@pytest.mark.parametrize("parts", [1, 7])
def test_sums_of_micro_batches_give_the_covariance_and_variance_of_all_draws(name, parts):
    rng = np.random.default_rng(5)
    d, losses = rng.random(5000).astype(np.float32), (100 + rng.random(5000)).astype(np.float32)
    learned, window = make_learned(name=name), SimpleNamespace(phase="curriculum")
    sums = sum(
        learned.observe(SimpleNamespace(distances=torch.from_numpy(a), window=window), torch.from_numpy(b))
        for a, b in zip(np.array_split(d, parts), np.array_split(losses, parts), strict=True)
    )
    assert (sums.dtype, sums.shape) == (torch.float64, (5,))
    h = (1 - d if name == "anti" else d).astype(np.float64)
    covariance, tau = np.cov(h, losses.astype(np.float64), ddof=0), 0.3
    gradient = objective_gradient(sums.numpy(), tau, 0.7)
    assert sums[0] == 5000
    assert gradient.loss == pytest.approx(covariance[0, 1] / (tau * losses.mean(dtype=np.float64)), rel=1e-7)
    assert gradient.entropy == pytest.approx(-0.7 * covariance[0, 0] / tau**2, rel=1e-10)


def test_anti_looks_from_the_other_side():
    d = distances_of()
    ends = {}
    for name in ("proto", "anti"):
        learned = make_learned(name=name, learned_may_fall=True)
        at = SimpleNamespace(distances=torch.from_numpy(d), window=SimpleNamespace(phase="curriculum"))
        ends[name] = objective_gradient(learned.observe(at, torch.from_numpy(0.2 + d)).numpy(), 0.3, 0.1).loss
    assert ends["proto"] == pytest.approx(-ends["anti"], rel=1e-6)
    assert ends["proto"] > 0


def test_the_fixed_point_balances_beta_and_the_slope():
    d, tau, beta, slope = distances_of(), 0.25, 0.1, 0.8
    p = p_tau(d, tau)
    mean = tau * slope / beta  # tau = beta * mean loss / slope
    loss = mean + slope * (d - (p * d).sum())
    h = d.astype(np.float64)
    gradient = objective_gradient(np.array([1, *((p * x).sum() for x in (h, loss, h * loss, h * h))]), tau, beta)
    assert sum(gradient) == pytest.approx(0, abs=1e-9)
    assert gradient.loss > 0.01


# Windows


def test_each_window_uses_the_sums_of_the_window_two_before():
    learned = make_learned(learned_may_fall=True, learned_eta=0.3, learned_beta=0.2)
    start = math.log(learned.temperature(0))
    assert learned.temperature(0) == learned.temperature(1) == pytest.approx(learned.curve.inverse(0.15))
    rng = np.random.default_rng(0)
    sums = [sums_of(rng.random(50), 1 + rng.random(50)) for _ in range(6)]
    theta = [start, start]
    for number, of_window in enumerate(sums):
        windows_of(learned, 1, of_window, first=number)
        used = objective_gradient(np.array(of_window), math.exp(theta[number]), 0.2)
        theta.append(max(theta[-1] - 0.3 * (used.loss + used.entropy), start))
        assert learned.temperature(number + 2) == pytest.approx(math.exp(theta[-1]), rel=1e-12)
        assert learned.gradient(number + 2) == pytest.approx(used)
    assert len(set(theta)) > 3


def test_sums_are_added_over_the_finite_steps_of_a_window():
    one, other = make_learned(), make_learned()
    for step in range(1, 5):
        one.update([outcome(step, ALIKE)])
    other.update([outcome(1, ALIKE), outcome(2, (math.nan,) * 5, finite=False), outcome(3, ALIKE)])
    other.update([outcome(4, (math.inf,) * 5, finite=False)])
    assert one.temperature(2) == other.temperature(2) > one.temperature(1)


def test_a_window_without_sums_leaves_theta_unchanged():
    learned = make_learned()
    windows_of(learned, 1, (0.0,) * 5)
    assert learned.temperature(2) == learned.temperature(1)
    assert learned.gradient(2) == (0, 0)


def test_windows_that_begin_during_warmup_leave_theta_unchanged():
    learned = make_learned(warm=2 * WINDOW + 1)
    windows_of(learned, 3, ALIKE)  # the third begins one draw before
    assert [learned.temperature(window) for window in (2, 3, 4)] == [learned.temperature(4)] * 3
    windows_of(learned, 1, ALIKE, first=3)
    assert learned.temperature(5) > learned.temperature(4)


def test_it_only_falls_if_allowed():
    for may_fall in (False, True):
        learned = make_learned(learned_may_fall=may_fall)
        windows_of(learned, 10, ALIKE)
        high = learned.temperature(11)
        windows_of(learned, 10, COSTLY, first=10)
        assert high > learned.temperature(20) * 1.01 if may_fall else learned.temperature(20) == high
        assert learned.gradient(20).loss > 0


@pytest.mark.parametrize("r0", [0.1, 0.3])
def test_it_stays_between_the_temperatures_of_r0_and_almost_all_data(r0):
    learned = make_learned(r0=r0, learned_may_fall=True)
    low, high = learned.curve.inverse(r0), learned.curve.inverse(learned.curve.uniform - 0.001)
    assert low < high < math.inf
    windows_of(learned, 5, COSTLY)
    assert learned.temperature(6) == pytest.approx(low, rel=1e-12)
    fast = make_learned(r0=r0, learned_eta=1e3, learned_may_fall=True)
    windows_of(fast, 5, ALIKE)
    assert fast.temperature(6) == pytest.approx(high, rel=1e-12)
    assert fast.curve(fast.temperature(6)) == pytest.approx(fast.curve.uniform - 0.001, abs=1e-6)
    windows_of(fast, 5, COSTLY, first=5)
    assert fast.temperature(11) == pytest.approx(low, rel=1e-12)


def test_sums_of_the_uniform_phase_are_0():
    batch = SimpleNamespace(distances=torch.ones(3), window=SimpleNamespace(phase="uniform"))
    assert make_learned().observe(batch, torch.ones(3)).tolist() == [0] * 5


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"window": 3 * BATCH}, r"curriculum\.window is 48 .*--temp-schedule learned .*\b64\b"),
        ({"window": 4 * BATCH + 1}, r"curriculum\.window .*data\.batch_size"),
        ({"r0": 0.015}, r"curriculum\.r0 is 0\.015.*--temp-schedule learned .*0\.020"),
    ],
)
def test_unusable_configurations_are_refused_in_one_line(config, message):
    with pytest.raises(ValueError, match=message) as raised:
        make_learned(**config)
    assert "\n" not in str(raised.value)


def test_short_windows_are_refused_for_the_learned_schedule_only():
    for config in ({"name": "none"}, {"temp_schedule": "linear"}):
        config = CurriculumConfig(**{"name": "proto", "temp_schedule": "learned", "window": BATCH} | config)
        assert config.window_length(400, BATCH) == BATCH


@pytest.mark.parametrize("knob", ["learned_eta", "learned_beta"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
def test_numbers_out_of_range_are_refused(knob, value):
    with pytest.raises(ValueError, match=f"curriculum.{knob} is {value}"):
        CurriculumConfig(**{knob: value})


# The plan


@pytest.mark.parametrize("name", ["proto", "anti"])
@pytest.mark.parametrize("resampling", ["multinomial", "systematic"])
def test_a_plan_draws_at_the_temperature_that_was_learned(resampling, name):
    learned = make_learned(resampling=resampling, name=name, learned_eta=0.01)
    plan = make_plan(learned)
    seen = []
    for number in range(8):
        window = plan.window(number)
        assert window.temperature == learned.temperature(number)
        assert window.effective_fraction == pytest.approx(learned.curve(window.temperature))
        config = CurriculumConfig(
            name, temp_schedule="constant", temperature=window.temperature, resampling=resampling, window=WINDOW
        )
        d = distances_of()
        same = Plan(config, samples=len(d), distances=d, draws=plan.draws, batch_size=BATCH, seed=3, hash64=hash64)
        np.testing.assert_array_equal(window.sample_ids, same.window(number).sample_ids)
        draws = window.first_draw + np.arange(5)
        np.testing.assert_array_equal(plan.substitutes(number, draws, 0)[0], same.substitutes(number, draws, 0)[0])
        seen.append(window.temperature)
        windows_of(learned, 1, ALIKE, first=number)
    assert len(set(seen)) == 7  # windows 0 and 1 are alike


def test_a_plan_without_temperatures_is_refused():
    config = make_learned()._config
    with pytest.raises(ValueError, match="LearnedTemperature"):
        Plan(config, samples=400, distances=distances_of(), draws=640, batch_size=BATCH, seed=0, hash64=hash64)


def test_a_window_is_known_after_the_last_step_of_the_window_two_before():
    learned = make_learned(share=0.5)
    plan = make_plan(learned, draws=10 * WINDOW)
    assert [plan.when_ready(number) for number in (0, 1, 5, 9)] == [None] * 4  # the curriculum ends before window 5
    waiting = {number: plan.when_ready(number) for number in (2, 3)}
    with pytest.raises(LookupError):
        plan.window(2)
    for step in range(1, 9):
        assert [waiting[number].done() for number in (2, 3)] == [step > 4, False]
        learned.update([outcome(step, ALIKE)])
    assert waiting[3].done()
    assert plan.when_ready(3) is None
    assert plan.window(3).temperature > plan.window(2).temperature


@pytest.mark.parametrize("name", ["proto", "anti"])
def test_it_stays_while_far_images_have_high_losses_and_rises_as_they_are_learned(name):
    """Simulates losses that fall as images are drawn, faster for typical ones, to the same floor."""
    d = distances_of()
    d = d if name == "proto" else 1 - d
    learned = make_learned(d, name=name, window=256, learned_eta=0.05)
    plan = make_plan(learned, draws=200 * 256, d=d)
    h, drawn, fractions, balance = distances_of(), np.zeros(400), [], []
    for number in range(200):
        window = plan.window(number)
        exposure = (drawn / 128 + number / 200) / 2  # of an image and of all, 128 draws an image in the whole run
        loss = 0.35 + 0.65 * np.exp(-20 * np.exp(-2.5 * h) * exposure)
        batch = SimpleNamespace(distances=torch.from_numpy(window.distances), window=window)
        measured = learned.observe(batch, torch.from_numpy(loss[window.sample_ids])).tolist()
        for step in range(16 * number + 1, 16 * number + 17):
            learned.update([outcome(step, measured if step % 16 == 0 else (0.0,) * 5)])
        drawn += np.bincount(window.sample_ids, minlength=400)
        fractions.append(window.effective_fraction)
        terms = learned.gradient(number + 2)
        balance.append(-terms.loss / terms.entropy)
    costly = np.flatnonzero(np.array(balance) > 1.5)
    assert 5 < len(costly) < 100
    assert fractions[costly[-1]] < 0.2  # it had no reason to rise so far, and little noise
    assert fractions[-1] > 0.35
    assert max(balance[100:]) < 1.5


# State


@pytest.mark.parametrize("step", [1, 3, 4, 5, 7, 8, 9, 18])
def test_a_saved_state_is_resumed_exactly_at_any_step(step):
    rng = np.random.default_rng(1)
    outcomes = [outcome(n, sums_of(rng.random(BATCH), 1 + rng.random(BATCH))) for n in range(1, 29)]
    learned = make_learned(learned_may_fall=True)
    learned.update(outcomes[:step])
    state = learned.state_dict()
    resumed = make_learned(learned_may_fall=True)
    resumed.load_state_dict(state)
    now, last = step // 4, (step - 1) // 4  # the windows of the next draw and of the last
    for number in {last, now, now + 1}:
        assert resumed.temperature(number) == learned.temperature(number)
        assert resumed.gradient(number) == learned.gradient(number)
    for each in (learned, resumed):
        each.update(outcomes[step:])
    assert resumed.state_dict() == learned.state_dict()
    assert learned.state_dict() != state
    assert len(learned.state_dict()["chosen"]) == 3


def test_state_of_other_windows_is_refused():
    with pytest.raises(ValueError, match=r"64 .*128.*curriculum\.window"):
        make_learned(window=128).load_state_dict(make_learned().state_dict())
