import math
from dataclasses import replace

import numpy as np
import pytest
import xxhash
from scipy.stats import chisquare

from mimcl.curriculum import difficulty
from mimcl.curriculum.config import CurriculumConfig
from mimcl.curriculum.plan import Plan
from mimcl.curriculum.temperature import EffectiveFraction, effective_fraction, p_tau
from mimcl.pipeline.augment import hash64


def distances_of(n: int) -> np.ndarray:
    d = np.random.default_rng(n).beta(5, 3, n).astype(np.float32)
    d[: n // 50 + 1], d[-1] = 0, 1
    return d


def make_plan(n=5000, *, d=None, draws=None, batch_size=100, seed=0, **config) -> Plan:
    """A proto plan over `n` images, three epochs long unless `draws` says otherwise."""
    config = CurriculumConfig(**{"name": "proto"} | config)
    if d is None and config.name != "none":
        d = distances_of(n)
    draws = draws or math.ceil(3 * n / batch_size) * batch_size
    return Plan(config, samples=n, distances=d, draws=draws, batch_size=batch_size, seed=seed, hash64=hash64)


def all_ids(plan: Plan) -> np.ndarray:
    return np.concatenate([plan.window(w).sample_ids for w in range(plan.windows)])


# Windows


@pytest.mark.parametrize(
    ("n", "batch_size", "window"),
    [(1_281_167, 4096, 4096 * 20), (500, 64, 64 * 4), (16_000, 100, 1000), (16_001, 100, 1100)],
)
def test_window_length(n, batch_size, window):
    assert make_plan(n, batch_size=batch_size, name="none").window_length == window


def test_windows_tile_the_run():
    plan = make_plan(window=700, draws=10_000)
    windows = [plan.window(w) for w in range(plan.windows)]
    assert plan.windows == 15
    assert [w.number for w in windows] == list(range(15))
    assert [w.first_draw for w in windows] == [700 * w for w in range(15)]
    assert [len(w.sample_ids) for w in windows] == [700] * 14 + [200]
    assert [len(w.distances) for w in windows] == [700] * 14 + [200]
    assert (plan.draws, plan.samples, plan.window_length) == (10_000, 5000, 700)
    for number in (-1, 15):
        with pytest.raises(IndexError):
            plan.window(number)


@pytest.mark.parametrize(
    ("share", "draws", "expected"),
    [(1.0, 10_000, 10_000), (0.5, 10_000, 5000), (0.32, 10_000, 3000), (0.0, 10_000, 0), (1.0, 10_400, 10_000)],
)
def test_curriculum_ends_at_a_window(share, draws, expected):
    plan = make_plan(share=share, window=1000, draws=draws)
    assert plan.curriculum_draws == expected
    for w in range(plan.windows):
        assert plan.window(w).phase == ("curriculum" if 1000 * w < expected else "uniform")


def test_run_cut_short_of_its_last_curriculum_window():
    plan = make_plan(window=1000, draws=9700)
    assert plan.curriculum_draws == 10_000
    assert len(plan.window(9).sample_ids) == 700
    assert plan.window(9).phase == "curriculum"


def test_no_curriculum_needs_no_distances():
    plan = make_plan(name="none")
    window = plan.window(0)
    assert plan.curriculum_draws == 0
    assert (window.phase, window.temperature) == ("uniform", math.inf)
    assert window.effective_fraction == pytest.approx(1 - (1 - 1 / 5000) ** 5000)
    assert np.isnan(window.distances).all()
    d = distances_of(5000)
    np.testing.assert_array_equal(make_plan(name="none", d=d).window(0).distances, d[window.sample_ids])


@pytest.mark.parametrize("resampling", ["multinomial", "systematic"])
@pytest.mark.parametrize("schedule", ["cosine", "linear", "exponential", "step"])
def test_windows_follow_the_schedule(schedule, resampling):
    plan = make_plan(temp_schedule=schedule, resampling=resampling, window=500, draws=10_000, r0=0.1)
    windows = [plan.window(w) for w in range(plan.windows)]
    fractions = [w.effective_fraction for w in windows]
    assert fractions[0] == pytest.approx(0.1, abs=1e-4)
    assert (np.diff(fractions) >= 0).all()
    assert fractions[10] == pytest.approx(
        {"cosine": 0.366, "linear": 0.366, "exponential": 0.2514, "step": 0.4548}[schedule], abs=1e-3
    )
    if schedule == "step":
        assert [w.temperature for w in windows[15:]] == [math.inf] * 5
    for w in windows:
        assert w.distances.dtype == np.float32
        assert w.sample_ids.dtype == np.int64
        np.testing.assert_array_equal(w.distances, distances_of(5000)[w.sample_ids])


def test_constant_temperature():
    plan = make_plan(temp_schedule="constant", temperature=0.3)
    exact = effective_fraction(p_tau(distances_of(5000), 0.3))
    for w in (0, plan.windows - 1):
        assert plan.window(w).temperature == 0.3
        assert plan.window(w).effective_fraction == pytest.approx(exact, abs=1e-6)


def test_direction():
    proto, anti = (make_plan(name=name).window(0) for name in ("proto", "anti"))
    mean = distances_of(5000).mean()
    assert proto.distances.mean() < mean - 0.1
    assert anti.distances.mean() > mean + 0.1
    assert proto.effective_fraction == pytest.approx(anti.effective_fraction, abs=1e-4)


def test_clamped():
    assert make_plan(r0=0.01).clamped  # the prototypes alone are 2% of the data
    assert not make_plan(r0=0.05).clamped
    assert not make_plan(r0=0.01, share=0).clamped
    assert not make_plan(name="none", r0=0.01).clamped
    assert not make_plan(r0=0.01, temp_schedule="constant").clamped
    d = distances_of(5000)
    assert (make_plan(r0=0.01).window(0).distances == 0).all()
    assert (make_plan(r0=0.01, d=1 - d, name="anti").window(0).distances == 1).all()


# Purity

MODES = [
    {},
    {"resampling": "systematic", "share": 0.5},
    {"resampling": "systematic", "share": 0.5, "uniform": "replacement"},
    {"share": 0.5, "uniform": "replacement", "name": "anti"},
    {"name": "none"},
]


@pytest.mark.parametrize("mode", MODES)
def test_a_window_does_not_depend_on_earlier_windows(mode):
    asked_first, asked_last, again = (make_plan(window=300, **mode) for _ in range(3))
    expected = [asked_last.window(w) for w in range(asked_last.windows)]
    for number in (7, 40, 3, 49, 8):
        window = asked_first.window(number)
        assert window.digest == expected[number].digest == again.window(number).digest
        np.testing.assert_array_equal(window.sample_ids, expected[number].sample_ids)
        assert window.temperature == expected[number].temperature


@pytest.mark.parametrize("mode", MODES)
def test_seeds_and_windows_differ(mode):
    one, other = make_plan(**mode), make_plan(seed=1, **mode)
    digests = [plan.window(w).digest for plan in (one, other) for w in range(plan.windows)]
    assert len(set(digests)) == len(digests)


@pytest.mark.parametrize("mode", [{}, {"resampling": "systematic"}])
def test_shorter_run_of_the_same_temperature_is_a_prefix(mode):
    long, short = (make_plan(temp_schedule="constant", window=700, draws=t, **mode) for t in (7000, 6800))
    np.testing.assert_array_equal(long.window(9).sample_ids[:500], short.window(9).sample_ids)


def test_digest_is_of_the_ids():
    window = make_plan().window(0)
    assert window.digest == xxhash.xxh64(window.sample_ids.astype("<i8").tobytes()).hexdigest()
    assert len(window.digest) == 16
    changed = window.sample_ids.copy()
    changed[0] += 1
    assert replace(window, sample_ids=changed).digest != window.digest
    assert replace(window, sample_ids=window.sample_ids[::-1]).digest != window.digest


# Multinomial


@pytest.mark.parametrize("tau", [0.05, 0.2, math.inf])
def test_multinomial_counts_fit_p(tau):
    n, draws = 20_000, 1_000_000
    plan = make_plan(n, temp_schedule="constant", temperature=tau, draws=draws, window=100_000, seed=3)
    ids, expected = all_ids(plan), draws * p_tau(distances_of(n), tau)
    # Cells of at least 5 expected draws: images in ascending order of p, cut where their sum passes a multiple of 10.
    order = np.argsort(expected)
    cells = np.empty(n, np.int64)
    cells[order] = np.minimum(np.cumsum(expected[order]) // 10, draws // 10 - 1)
    _, cells = np.unique(cells, return_inverse=True)
    expected_cells, seen = np.bincount(cells, expected), np.bincount(cells[ids], minlength=cells.max() + 1)
    assert expected_cells.min() >= 5
    assert len(expected_cells) > 1000
    p_value = chisquare(seen, expected_cells * draws / expected_cells.sum()).pvalue
    print(f"tau {tau}: {len(expected_cells)} cells, p-value {p_value:.3f}")
    assert 0.001 <= p_value <= 0.999


@pytest.mark.parametrize("r", [0.15, 0.4, 0.6321])
def test_multinomial_distinct_share_is_r(r):
    n = 200_000
    tau = EffectiveFraction(distances_of(n)).inverse(r)
    plan = make_plan(n, temp_schedule="constant", temperature=tau, window=10_000, draws=n)
    share = len(np.unique(all_ids(plan))) / n
    print(f"r {r}: distinct {share:.5f}")
    assert share == pytest.approx(plan.window(0).effective_fraction, rel=0.01)
    assert share == pytest.approx(r, rel=0.01)


def test_images_of_probability_0_are_never_drawn():
    d = np.repeat(np.float32([1, 0, 1]), 1000)  # at this temperature the far ones' weight underflows to 0
    for resampling in ("multinomial", "systematic"):
        plan = make_plan(3000, d=d, temp_schedule="constant", temperature=1e-3, resampling=resampling, window=1000)
        ids = all_ids(plan)
        assert ids.min() >= 1000
        assert ids.max() < 2000


@pytest.mark.parametrize("bits", [0, 2**64 - 1])
@pytest.mark.parametrize("tau", [1e-3, 0.3, math.inf])
def test_extreme_random_numbers_stay_in_range(bits, tau):
    def extreme(seed, numbers, stream):
        return np.full(np.shape(np.atleast_1d(numbers)), bits, np.uint64)

    d = np.repeat(np.float32([1, 0, 1]), 100_000)
    config = CurriculumConfig("proto", temp_schedule="constant", temperature=tau, window=50)
    plan = Plan(config, samples=300_000, distances=d, draws=50, batch_size=50, seed=0, hash64=extreme)
    drawable = np.flatnonzero(p_tau(d, tau))
    assert set(plan.window(0).sample_ids) == {drawable[-1] if bits else drawable[0]}


# Systematic


@pytest.mark.parametrize("tau", [0.03, 0.2, math.inf])
@pytest.mark.parametrize("window", [400, 1700, 12_000])  # 13 windows a block, 3, and 1
def test_systematic_counts_are_within_one(tau, window):
    n = 5000
    block = math.ceil(n / window)
    plan = make_plan(
        n,
        temp_schedule="constant",
        temperature=tau,
        resampling="systematic",
        window=window,
        draws=3 * block * window,
    )
    p = p_tau(distances_of(n), tau)
    counts = np.stack([np.bincount(plan.window(w).sample_ids, minlength=n) for w in range(plan.windows)])
    assert (np.abs(counts - window * p) < 1).all()
    blocks = counts.reshape(3, block, n).sum(axis=1)
    assert (np.abs(blocks - block * window * p) < 1).all()


def test_systematic_mean_count_is_unbiased():
    n, window, seeds = 500, 200, 200
    d = distances_of(n)
    plans = (
        make_plan(n, d=d, seed=seed, resampling="systematic", temp_schedule="constant", window=window, draws=3 * window)
        for seed in range(seeds)
    )
    mean = np.mean([np.bincount(plan.window(1).sample_ids, minlength=n) for plan in plans], axis=0)
    # Over seeds an image's count is floor(W p) or one more, the latter with probability frac(W p): hence its z-score.
    expected = window * p_tau(d, 0.2)
    fraction = expected % 1
    z = (mean - expected) / np.sqrt(fraction * (1 - fraction) / seeds)
    print(f"z-scores: mean {z.mean():.3f}, standard deviation {z.std():.3f}, largest {np.abs(z).max():.2f}")
    assert np.abs(z).max() < 4.5
    assert abs(z.mean()) < 0.2
    assert 0.85 < z.std() < 1.15


@pytest.mark.parametrize("tau", [0.05, 0.2, 1.0])
def test_systematic_distinct_share(tau):
    n = 20_000
    plan = make_plan(n, resampling="systematic", temp_schedule="constant", temperature=tau, window=1000, draws=n)
    share = len(np.unique(all_ids(plan))) / n
    expected = np.minimum(1, n * p_tau(distances_of(n), tau)).mean()
    print(f"tau {tau}: distinct {share:.4f}, expected {expected:.4f}")
    assert share == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("name", ["proto", "anti"])
def test_a_block_too_large_to_be_cached_gives_the_same_windows(name, monkeypatch):
    monkeypatch.setattr(difficulty, "CHUNK", 1 << 10)
    options = {"name": name, "resampling": "systematic", "share": 0.5}
    kept = all_ids(make_plan(**options))
    monkeypatch.setattr(difficulty, "_KEPT_IMAGES", 0)
    np.testing.assert_array_equal(all_ids(make_plan(**options)), kept)


def test_systematic_draws_are_in_random_order():
    plan = make_plan(resampling="systematic", temp_schedule="constant", window=5000)
    window = plan.window(0)
    # Neither position nor neighbour says anything about an image.
    assert abs(np.corrcoef(np.arange(5000), window.sample_ids)[0, 1]) < 0.05
    assert abs(np.corrcoef(np.arange(5000), window.distances)[0, 1]) < 0.05
    assert abs(np.corrcoef(window.distances[1:], window.distances[:-1])[0, 1]) < 0.05


# Uniform


@pytest.mark.parametrize("n", [1, 2, 3, 5, 997, 5000])
@pytest.mark.parametrize("window", [64, 704])
def test_every_image_once_a_pass(n, window):
    draws = max(4 * n, 64)
    ids = all_ids(make_plan(n, name="none", window=window, batch_size=64, draws=draws))
    passes = ids[: draws // n * n].reshape(-1, n)
    assert (np.sort(passes, axis=1) == np.arange(n)).all()
    if n > 10:
        assert (passes[0] != passes[1]).any()


def test_passes_start_where_the_curriculum_ends():
    n = 997  # no multiple of the window
    plan = make_plan(n, share=0.5, window=100, batch_size=50, draws=6000)
    uniform = all_ids(plan)[plan.curriculum_draws :]
    assert len(uniform) == 3000
    assert (np.sort(uniform[: 3 * n].reshape(3, n), axis=1) == np.arange(n)).all()


@pytest.mark.parametrize("resampling", ["multinomial", "systematic"])
def test_replacement_draws_like_the_curriculum_at_infinite_temperature(resampling):
    n = 5000
    forever = make_plan(n, temp_schedule="constant", temperature=math.inf, resampling=resampling, draws=3 * n)
    after = make_plan(n, name="none", uniform="replacement", resampling=resampling, draws=3 * n)
    np.testing.assert_array_equal(all_ids(forever), all_ids(after))
    distinct = len(np.unique(all_ids(after)[:n])) / n
    assert distinct == pytest.approx(0.632, abs=0.02) if resampling == "multinomial" else distinct > 0.9
    assert after.window(0).phase == "uniform"


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize("resampling", ["multinomial", "systematic"])
def test_curriculum_over_a_few_images(n, resampling):
    plan = make_plan(n, d=np.linspace(0, 1, n, dtype=np.float32), batch_size=8, draws=640, resampling=resampling)
    ids = all_ids(plan)
    assert len(ids) == 640
    assert set(ids) == set(range(n))
    assert (plan.window(0).sample_ids == 0).all()
    assert plan.clamped


# Errors


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("name", "easy"),
        ("temp_schedule", "cos"),
        ("resampling", "residual"),
        ("uniform", "shuffle"),
        ("r0", 0.0),
        ("r0", 0.64),
        ("r0", math.nan),
        ("share", -0.1),
        ("share", 1.5),
        ("temperature", 0.0),
        ("temperature", math.nan),
        ("window", 0),
        ("window", -100),
    ],
)
def test_config_errors_name_knob_and_value(knob, value):
    with pytest.raises(ValueError, match=rf"^curriculum\.{knob} is {value!r}; choose "):
        CurriculumConfig(**{knob: value})


def spoilt(value: float) -> np.ndarray:
    d = distances_of(5000)
    d[17] = value
    return d


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window": 250}, r"window is 250 draws.*data\.batch_size \(100\)"),
        ({"d": spoilt(np.nan)}, "distances are .*0 to 1"),
        ({"d": spoilt(1.01)}, "distances are .*0 to 1"),
        ({"d": spoilt(-0.01)}, "distances are .*0 to 1"),
        ({"d": np.full(5000, 0.5, np.float32)}, "5000 distances are equal"),
        ({"d": distances_of(4999)}, r"shape \(4999,\)"),
        ({"batch_size": -1, "draws": 100}, "batch_size is -1"),
        ({"draws": -5}, "draws is -5"),
    ],
)
def test_plan_errors(change, message):
    with pytest.raises(ValueError, match=message):
        make_plan(**change)


@pytest.mark.parametrize("name", ["proto", "anti"])
def test_curriculum_without_distances(name):
    with pytest.raises(ValueError, match=f"curriculum.name is '{name}'"):
        Plan(CurriculumConfig(name), samples=9, distances=None, draws=9, batch_size=3, seed=0, hash64=hash64)


# Substitutes


@pytest.mark.parametrize("resampling", ["multinomial", "systematic"])
@pytest.mark.parametrize("mode", [{}, {"name": "anti"}, {"share": 0.0}, {"share": 0.0, "uniform": "replacement"}])
def test_substitutes_fit_the_windows_p(mode, resampling):
    n, draws = 20_000, 400_000
    plan = make_plan(n, window=draws, draws=3 * draws, resampling=resampling, seed=5, **mode)
    tau, d = plan.window(1).temperature, distances_of(n)
    assert math.isinf(tau) == (mode.get("share") == 0.0)
    ids, distances = plan.substitutes(1, np.arange(draws, 2 * draws), 3)
    np.testing.assert_array_equal(distances, d[ids])
    assert (ids.dtype, distances.dtype) == (np.int64, np.float32)
    expected = draws * p_tau(1 - d if mode.get("name") == "anti" else d, tau)
    cells = np.minimum(np.cumsum(expected) // 20, draws // 20 - 1).astype(np.int64)
    seen, expected = np.bincount(cells[ids], minlength=cells.max() + 1), np.bincount(cells, expected)
    full = expected >= 5
    p_value = chisquare(seen[full], expected[full] * seen[full].sum() / expected[full].sum()).pvalue
    print(f"{full.sum()} cells, p-value {p_value:.3f}")
    assert full.sum() > 1000
    assert 0.001 <= p_value <= 0.999


@pytest.mark.parametrize("mode", MODES)
def test_a_substitute_is_a_function_of_draw_and_retry(mode):
    plan, draws = make_plan(window=300, **mode), np.arange(900, 1200)
    ids, distances = plan.substitutes(3, draws, 2)
    some = np.array([250, 3, 77])
    one_by_one = [make_plan(window=300, **mode).substitutes(3, draws[[place]], 2) for place in some]
    np.testing.assert_array_equal(np.concatenate([one for one, _ in one_by_one]), ids[some])
    np.testing.assert_array_equal(np.concatenate([one for _, one in one_by_one]), distances[some])
    for other in (plan.window(3).sample_ids, plan.substitutes(3, draws, 1)[0], plan.substitutes(3, draws, 15)[0]):
        assert (other == ids).mean() < 0.1  # an image in common now and then


def test_each_retry_has_different_substitutes():
    draws = np.arange(1000)
    found = {plan.substitutes(0, draws, k)[0].tobytes() for plan in [make_plan(window=1000)] for k in range(16)}
    assert len(found) == make_plan().retries == 16


@pytest.mark.parametrize(("number", "retry"), [(-1, 0), (15, 0), (0, -1), (0, 16)])
def test_no_substitutes_outside_the_plan(number, retry):
    with pytest.raises(IndexError):
        make_plan(window=1000, draws=15_000).substitutes(number, np.array([5]), retry)
