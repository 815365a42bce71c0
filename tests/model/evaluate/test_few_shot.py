"""Few-shot classification on features with known answers, and against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from mimcl.model.evaluate.few_shot import few_shot, subset


def gaussians(samples: int, *, classes: int = 4, width: int = 32, distance: float = 3, seed: int = 0):
    centres = distance * np.random.default_rng(98).standard_normal((classes, width)) / np.sqrt(width)
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, samples)
    return (centres[labels] + rng.standard_normal((samples, width)) / 2).astype(np.float32), labels


def prepared(x):
    x = x.astype(np.float64) - x.mean(axis=1, keepdims=True)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize("strength", [0.00025, 1.0])
def test_it_is_scikit_learns_logistic_regression_on_the_same_subsets(strength):
    (train, labels), (val, truth) = gaussians(400, distance=1, seed=1), gaussians(3000, distance=1, seed=2)
    found = dict(few_shot(train, labels, val, truth, shots=(2, 10), seeds=3, strength=strength))
    for shots in (2, 10):
        scores = []
        for seed in range(3):
            rows = subset(torch.from_numpy(labels), shots, seed).numpy()
            # Its objective is C times the sum of cross-entropies, and half the square.
            model = LogisticRegression(C=1 / strength, fit_intercept=False, tol=1e-7, max_iter=20_000)
            scores.append(model.fit(prepared(train)[rows], labels[rows]).score(prepared(val), truth))
        assert 0.3 < np.mean(scores) < 0.97
        assert found[f"{shots}_shot"] == pytest.approx(np.mean(scores), abs=0.005)
        assert found[f"{shots}_shot_std"] == pytest.approx(np.std(scores, ddof=1), abs=0.005)


def test_separable_classes_are_all_correct_and_noise_gives_chance():
    (train, labels), (val, truth) = gaussians(400, distance=40, seed=3), gaussians(1000, distance=40, seed=4)
    found = dict(few_shot(train, labels, val, truth))
    assert list(found) == ["1_shot", "1_shot_std", "5_shot", "5_shot_std", "10_shot", "10_shot_std"]
    assert list(found.values()) == [1, 0] * 3
    noise = np.random.default_rng(5).standard_normal((2400, 32), np.float32)
    shares = dict(few_shot(noise[:400], labels, noise[400:], np.arange(2000) % 4, seeds=3))
    for shots in (1, 5, 10):
        assert shares[f"{shots}_shot"] == pytest.approx(0.25, abs=0.05)
        assert 0 < shares[f"{shots}_shot_std"] < 0.05


def test_more_shots_are_better():
    (train, labels), (val, truth) = gaussians(400, distance=1.5, seed=6), gaussians(2000, distance=1.5, seed=7)
    found = dict(few_shot(train, labels, val, truth))
    assert found["1_shot"] + 0.05 < found["5_shot"] < found["10_shot"]


def test_a_subset_depends_on_seed_and_shots_and_takes_all_of_a_small_class():
    labels = torch.tensor([0] * 50 + [1] * 3 + [2] * 40)
    rows = {(shots, seed): subset(labels, shots, seed).tolist() for shots in (1, 5) for seed in (0, 1)}
    assert labels[rows[5, 0]].bincount().tolist() == [5, 3, 5]
    assert labels[rows[1, 0]].bincount().tolist() == [1, 1, 1]
    assert rows[5, 0] != rows[5, 1]
    assert rows[5, 0] == subset(labels, 5, 0).tolist()
    counts = torch.stack([torch.isin(torch.arange(93), subset(labels, 5, seed)) for seed in range(200)]).sum(0)
    assert counts[50:53].tolist() == [200] * 3
    assert counts[:50].min() > 5
    assert counts[:50].max() < 40  # of 20 expected


def test_one_seed_has_no_deviation_and_the_global_generator_is_left_alone():
    train, labels = gaussians(60, seed=8)
    before = torch.random.get_rng_state()
    found = dict(few_shot(train, labels, train, labels, shots=[3], seeds=1))
    assert list(found) == ["3_shot"]
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("options", "message"),
    [({"shots": [3]}, "no class has more than 2"), ({"seeds": 0}, "above 0"), ({"shots": [0]}, "above 0")],
)
def test_invalid_options_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        list(few_shot(np.eye(4), [0, 0, 1, 1], np.eye(4), [0, 0, 1, 1], **{"shots": [1], **options}))
