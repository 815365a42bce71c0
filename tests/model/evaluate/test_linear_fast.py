"""The fast linear probe on features with known answers, and against scikit-learn."""

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from mimcl.model.evaluate.linear_fast import RATES, linear_fast

SHORT = {"epochs": 60, "batch_size": 256}


def gaussians(samples: int, *, classes: int = 4, width: int = 24, distance: float = 0.9, seed: int = 0):
    """Overlapping classes about fixed centres, with badly scaled and shifted dimensions."""
    centres = distance * np.random.default_rng(99).standard_normal((classes, width)) / np.sqrt(width) * 2
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, samples)
    features = centres[labels] + rng.standard_normal((samples, width))
    return (features * np.geomspace(1e-2, 50, width) + 3).astype(np.float32), labels


def test_it_reaches_the_bayes_accuracy():
    rng, half = np.random.default_rng(1), 1.0
    labels = rng.integers(0, 2, 24_000)
    features = rng.standard_normal((24_000, 8))
    features[:, 0] += half * (2 * labels - 1)  # two unit Gaussians 2 apart: Bayes is right with Phi(1) = 0.841
    found = dict(linear_fast(features[:4000], labels[:4000], features[4000:], labels[4000:], **SHORT))
    assert found["linear"] == pytest.approx(norm.cdf(half), abs=0.01)
    assert found["held_out"] == pytest.approx(norm.cdf(half), abs=0.06)  # of 400


@pytest.mark.slow
def test_it_agrees_with_scikit_learn_to_half_a_point():
    (train, labels), (val, truth) = gaussians(4000, seed=1), gaussians(8000, seed=2)
    scaler = StandardScaler().fit(train)
    reference = LogisticRegression(C=1e4, max_iter=2000).fit(scaler.transform(train), labels)
    expected = reference.score(scaler.transform(val), truth)
    assert 0.5 < expected < 0.9
    assert dict(linear_fast(train, labels, val, truth, **SHORT))["linear"] == pytest.approx(expected, abs=0.005)


def test_shuffled_labels_give_chance_and_separable_classes_are_all_correct():
    (train, labels), (val, truth) = gaussians(1000, seed=3), gaussians(2000, seed=4)
    shuffled = np.random.default_rng(5).permutation(labels)
    share = dict(linear_fast(train, shuffled, val, truth, epochs=10))["linear"]
    assert share == pytest.approx(0.25, abs=0.08)
    (train, labels), (val, truth) = gaussians(1000, distance=20, seed=3), gaussians(2000, distance=20, seed=4)
    assert dict(linear_fast(train, labels, val, truth, epochs=10))["linear"] == 1


def test_it_depends_on_its_seed_and_leaves_global_generators_alone():
    (train, labels), (val, truth) = gaussians(600, seed=6), gaussians(3000, seed=7)
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    one, same, other = (
        list(linear_fast(train, labels, val, truth, epochs=8, batch_size=64, seed=seed)) for seed in (3, 3, 4)
    )
    assert one == same
    assert one != other
    assert torch.equal(before[0], torch.random.get_rng_state())
    np.testing.assert_array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.slow
def test_heads_trained_together_match_heads_trained_alone():
    (train, labels), (val, truth) = gaussians(500, seed=8), gaussians(500, seed=9)
    together = dict(linear_fast(train, labels, val, truth, epochs=5, batch_size=64))
    alone = {
        rate: dict(linear_fast(train, labels, val, truth, epochs=5, batch_size=64, rates=[rate])) for rate in RATES
    }
    held_out = [alone[rate]["held_out"] for rate in RATES]
    assert together["learning_rate"] == RATES[int(np.argmax(held_out))]
    assert together["linear"] == pytest.approx(alone[together["learning_rate"]]["linear"], abs=0.002)
    assert together["held_out"] == pytest.approx(max(held_out), abs=0.02)
    assert together["held_out_lowest"] == pytest.approx(min(held_out), abs=0.02)


def test_the_learning_rate_does_not_depend_on_val():
    (train, labels), (val, truth) = gaussians(400, seed=10), gaussians(400, seed=11)
    of = {name: dict(linear_fast(train, labels, val, t, epochs=3)) for name, t in (("true", truth), ("not", 3 - truth))}
    for name in ("learning_rate", "held_out", "held_out_lowest"):
        assert of["true"][name] == of["not"][name]


def test_classes_only_in_val_count_as_wrong_and_labels_may_be_any_integers():
    (train, labels), (val, truth) = gaussians(400, distance=20, seed=12), gaussians(1000, distance=20, seed=13)
    numbers = np.array([7, 900, 12, 3])
    strange = np.where(np.arange(1000) < 250, 5, numbers[truth])
    train_labels = np.where(np.arange(400) % 5, numbers[labels], -1)
    assert dict(linear_fast(train, train_labels, val, strange, epochs=10))["linear"] == 0.75


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([1, 1, 1, -1], {}, "same class"),
        ([0, 1, 2, 3], {}, "no class has two"),
        ([-1] * 4, {}, "the train samples: no sample has a label"),
        ([0, 1, 0, 1], {"epochs": 0}, "must be above 0"),
    ],
)
def test_invalid_labels_and_options_are_errors(labels, options, message):
    with pytest.raises(ValueError, match=message):
        list(linear_fast(np.eye(4), labels, np.eye(4), [0, 1, 0, 1], **options))
