"""Order "shard": the same draws as with "random", reordered so that each shard is read once, in order."""

import itertools
import math

import numpy as np
import pytest

from mimcl.curriculum import shard_order
from mimcl.curriculum.config import CurriculumConfig
from mimcl.curriculum.plan import Plan
from mimcl.curriculum.shard_order import arrange
from mimcl.pipeline.augment import hash64


def shards_of(n, mean=50, seed=0) -> np.ndarray:
    """Ascending shard numbers, for shards of irregular length."""
    lengths = np.random.default_rng(seed).integers(mean // 2, 2 * mean, 2 * n // mean + 1)
    return np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)[:n]


def drawn_of(n, count, seed=0) -> np.ndarray:
    """Sample ids, some drawn often, some never."""
    rng = np.random.default_rng(seed)
    return rng.choice(n, count, p=rng.dirichlet(np.full(n, 0.3)))


def make_plan(n, how, *, seed=0, shards=None, **config) -> Plan:
    d = np.random.default_rng(n).beta(5, 3, n).astype(np.float32)
    d[: n // 50 + 1], d[-1] = 0, 1
    config = CurriculumConfig(**{"name": "proto", "order": how} | config)
    shards = shards_of(n) if shards is None else shards
    return Plan(config, samples=n, distances=d, draws=4 * n, batch_size=100, seed=seed, hash64=hash64, shards=shards)


def pieces(ids, stretches) -> list[np.ndarray]:
    return [ids[a:b] for a, b in itertools.pairwise(stretches)]


@pytest.fixture
def short(monkeypatch):
    """Stretches of 300 draws, of 4 shards or more."""
    monkeypatch.setattr(shard_order, "STRETCH", 300)
    monkeypatch.setattr(shard_order, "SHARDS", 4)


@pytest.mark.parametrize("count", [1, 2, 77, 1000, 20_000])
@pytest.mark.parametrize("n", [1, 60, 5000])
def test_stretches_hold_each_sample_once_and_pieces_of_shards_in_order(short, n, count):
    shards, drawn = shards_of(n), drawn_of(n, count)
    ids, stretches = arrange(drawn, shards, 7, hash64)
    assert (ids.dtype, len(ids)) == (np.int64, count)
    np.testing.assert_array_equal(np.sort(ids), np.sort(drawn))
    assert (stretches[0], stretches[-1]) == (0, count)
    assert (np.diff(stretches) > 0).all()
    assert len(stretches) - 1 <= max(1, count / 150)
    assert n < 5000 or len(stretches) - 1 >= count / 600  # a sample that is drawn ever so often cannot be cut
    parts = [np.unique(part) for part in pieces(ids, stretches)]
    together = np.concatenate(parts)
    assert len(np.unique(together)) == len(together)  # each sample in one stretch
    for shard in np.unique(shards[drawn]):
        inside = together[shards[together] == shard]
        assert (np.diff(inside) > 0).all()  # what is drawn of the shard, from its beginning to its end
        np.testing.assert_array_equal(inside, np.unique(drawn[shards[drawn] == shard]))


def test_several_shards_are_read_side_by_side_and_shuffled(short):
    shards, drawn = shards_of(5000), np.random.default_rng(1).integers(0, 5000, 20_000)
    ids, stretches = arrange(drawn, shards, 7, hash64)
    for part in pieces(ids, stretches):
        assert len(np.unique(shards[part])) >= 4
        assert 150 <= len(part) <= 600
        # A draw's position and neighbours hardly predict its shard or sample.
        assert abs(np.corrcoef(np.arange(len(part)), part)[0, 1]) < 0.3
        assert (shards[part[1:]] == shards[part[:-1]]).mean() < 0.6
    touched = [shards[part].min() for part in pieces(ids, stretches)]
    assert {-1, 1} <= set(np.sign(np.diff(touched)))  # shards do not come in their own order


def test_places_in_a_stretch_are_uniform_however_often_a_sample_is_drawn():
    """One stretch; samples 0 ... 99 are drawn once, 100 ... 149 twice, 150 ... 159 ten times."""
    drawn = np.concatenate([np.arange(100), np.repeat(np.arange(100, 150), 2), np.repeat(np.arange(150, 160), 10)])
    shards, found = np.zeros(160, np.int32), []
    for key in range(400):
        ids, stretches = arrange(drawn, shards, key, hash64)
        assert stretches.tolist() == [0, 300]
        found.append(ids)
        places = [np.flatnonzero(ids == sample) for sample in (120, 155)]
        assert np.diff(places[0]).min() > 100  # copies stand about as far apart as they can
        assert np.diff(places[1]).min() > 15
    for few, many in ((0, 100), (100, 150), (150, 160)):
        places = np.nonzero((np.array(found) >= few) & (np.array(found) < many))[1]
        counts = np.bincount(places // 30, minlength=10)
        assert np.abs(counts / counts.mean() - 1).max() < 0.05
    assert len({ids.tobytes() for ids in found}) == 400


def test_shards_without_draws_are_left_out_and_keys_differ(short):
    shards = shards_of(5000)
    drawn = np.flatnonzero(shards % 3 == 1)
    (ids, _), (again, _), (other, _) = (arrange(drawn, shards, key, hash64) for key in (5, 5, 6))
    assert set(shards[ids]) == set(shards[drawn])
    np.testing.assert_array_equal(ids, again)
    assert (ids != other).mean() > 0.9
    shuffled = np.random.default_rng(0).permutation(drawn)
    np.testing.assert_array_equal(arrange(shuffled, shards, 5, hash64)[0], ids)  # which, not in which order


@pytest.mark.parametrize("bits", [0, 2**64 - 1])
def test_extreme_random_numbers_stay_in_range(short, bits):
    def extreme(seed, numbers, stream):
        return np.full(np.shape(np.atleast_1d(numbers)), bits, np.uint64)

    drawn = drawn_of(5000, 20_000)
    ids, stretches = arrange(drawn, shards_of(5000), 7, extreme)
    np.testing.assert_array_equal(np.sort(ids), np.sort(drawn))
    assert stretches[-1] == 20_000


MODES = [
    {},
    {"name": "anti", "temp_schedule": "linear", "share": 0.4},
    {"name": "anti", "resampling": "systematic", "temp_schedule": "exponential"},
    {"resampling": "systematic", "temp_schedule": "step", "share": 0.5, "uniform": "replacement"},
    {"temp_schedule": "constant", "temperature": 0.05},
    {"temp_schedule": "constant", "temperature": 0.05, "resampling": "systematic", "share": 0.3},
    {"name": "none"},
    {"name": "none", "uniform": "replacement"},
    {"name": "none", "uniform": "replacement", "resampling": "systematic", "slice": 0.25},
]


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_a_window_draws_the_same_samples_as_with_random_order(short, mode):
    n = 4000
    at_random, by_shard, again = (make_plan(n, how, **mode) for how in ("random", "shard", "shard"))
    changed = 0
    for number in (*range(0, by_shard.windows, 5), by_shard.windows - 1):
        one, other = at_random.window(number), by_shard.window(number)
        np.testing.assert_array_equal(np.sort(one.sample_ids), np.sort(other.sample_ids))
        assert (one.temperature, one.phase, one.first_draw) == (other.temperature, other.phase, other.first_draw)
        expected, _ = arrange(one.sample_ids, shards_of(n), by_shard._key(number, 21), hash64)
        np.testing.assert_array_equal(other.sample_ids, expected)
        np.testing.assert_array_equal(np.sort(one.distances), np.sort(other.distances))
        np.testing.assert_array_equal(other.distances, by_shard._distances_of(number, other.sample_ids))
        assert again.window(number).digest == other.digest != one.digest
        changed += (one.sample_ids != other.sample_ids).mean() > 0.5
        draws = np.arange(other.first_draw, other.first_draw + 20)
        for a, b in zip(at_random.substitutes(number, draws, 1), by_shard.substitutes(number, draws, 1), strict=True):
            np.testing.assert_array_equal(a, b)
    assert changed > 3
    assert make_plan(n, "shard", seed=1, **mode).window(0).digest != by_shard.window(0).digest


def test_stretches_of_their_real_size():
    n = 60_000
    plan = make_plan(n, "shard", slice=1.0, shards=shards_of(n, 1000))
    window = plan.window(0)
    assert plan.window_length == n
    parts = pieces(window.sample_ids, window.stretches)
    assert [len(part) for part in parts] == pytest.approx([n / len(parts)] * len(parts), rel=0.3)
    assert len(parts) in (3, 4)
    assert sum(len(np.unique(part)) for part in parts) == len(np.unique(window.sample_ids))


def test_shards_are_needed():
    for shards in (None, np.zeros(9, np.int32)):
        with pytest.raises(ValueError, match="curriculum.order is 'shard'"):
            Plan(
                CurriculumConfig(order="shard"),
                samples=10,
                distances=None,
                draws=10,
                batch_size=5,
                seed=0,
                hash64=hash64,
                shards=shards,
            )


# Slices


@pytest.mark.parametrize("samples", [1, 64, 16_001, 1_281_167, 100_000_000])
@pytest.mark.parametrize("batch_size", [1, 100, 4096])
def test_a_window_is_a_slice_of_an_epoch(samples, batch_size):
    as_before = batch_size * max(4, math.ceil(samples / (16 * batch_size)))
    assert CurriculumConfig().window_length(samples, batch_size) == as_before
    for part in (0.25, 0.3, 1.0):
        length = CurriculumConfig(slice=part).window_length(samples, batch_size)
        assert length == batch_size * max(4, math.ceil(part * samples / batch_size))
    assert CurriculumConfig(slice=1.0, window=800).window_length(samples, 100) == 800


@pytest.mark.parametrize(
    ("knob", "value"), [("order", "shards"), ("slice", 0.0), ("slice", -1.0), ("slice", 1.5), ("slice", math.nan)]
)
def test_config_errors_name_knob_and_value(knob, value):
    with pytest.raises(ValueError, match=rf"^curriculum\.{knob} is {value!r}; choose "):
        CurriculumConfig(**{knob: value})
