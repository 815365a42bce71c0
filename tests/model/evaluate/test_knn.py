"""nn and knn against scikit-learn, against the formula, and on known answers."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from mimcl.model.evaluate import knn as module
from mimcl.model.evaluate.knn import correct, knn, nearest, vote

TEMPERATURE = 0.07


def clusters(samples: int, *, classes: int = 5, width: int = 16, spread: float, seed: int = 0):
    """Overlapping classes of features with different norms: (samples, width) float32, and labels."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((classes, width))
    labels = rng.integers(0, classes, samples)
    features = (centres[labels] + spread * rng.standard_normal((samples, width))) * rng.uniform(0.1, 9, (samples, 1))
    return features.astype(np.float32), labels


@pytest.fixture(scope="module")
def overlapping():
    """A bank and queries with accuracies of some 60-80 %, larger than the blocks of `small_blocks`."""
    return *clusters(1500, spread=2.0, seed=1), *clusters(700, spread=2.0, seed=2)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(module, "_BANK", 333)
    monkeypatch.setattr(module, "_QUERIES", 64)


def dino(bank, bank_labels, queries, k):
    """The vote as defined by Caron et al., one query at a time, in float64: classes (M,)."""
    bank, queries = (
        x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1)[:, None] for x in (bank, queries)
    )
    predicted = []
    for similarity in queries @ bank.T:
        votes = np.zeros(bank_labels.max() + 1)
        for row in np.argsort(-similarity)[:k]:
            votes[bank_labels[row]] += np.exp(similarity[row] / TEMPERATURE)
        predicted.append(votes.argmax())
    return np.array(predicted)


def predictions(bank, bank_labels, queries, k):
    """The classes that nn and knn predict for each query."""
    unit = [torch.nn.functional.normalize(torch.from_numpy(x)) for x in (bank, queries)]
    similarities, rows = nearest(*unit, k)
    labels = torch.from_numpy(bank_labels)[rows]
    return labels[:, 0].numpy(), vote(similarities, labels, TEMPERATURE).numpy()


def test_nn_matches_scikit_learn_exactly(overlapping, small_blocks):
    bank, bank_labels, queries, query_labels = overlapping
    reference = KNeighborsClassifier(1, metric="cosine").fit(bank, bank_labels)
    expected = reference.predict(queries)
    assert 0.5 < np.mean(expected == query_labels) < 0.9
    np.testing.assert_array_equal(predictions(bank, bank_labels, queries, 20)[0], expected)
    np.testing.assert_array_equal(correct(*overlapping)["nn"], expected == query_labels)
    assert dict(knn(*overlapping))["nn"] == np.mean(expected == query_labels)


@pytest.mark.parametrize("k", [1, 5, 20, 200])
def test_knn_matches_the_formula_and_scikit_learn(overlapping, small_blocks, k):
    bank, bank_labels, queries, query_labels = overlapping
    expected = dino(bank, bank_labels, queries, k)
    found = predictions(bank, bank_labels, queries, k)[1]
    np.testing.assert_array_equal(found, expected)
    reference = KNeighborsClassifier(
        k, metric="cosine", weights=lambda distance: np.exp((1 - distance) / TEMPERATURE)
    ).fit(bank, bank_labels)
    np.testing.assert_array_equal(found, reference.predict(queries))
    np.testing.assert_array_equal(correct(*overlapping, k=k)["knn"], expected == query_labels)
    assert dict(knn(*overlapping, k=k))["knn"] == np.mean(expected == query_labels)


def test_block_sizes_do_not_change_the_result(overlapping, monkeypatch):
    whole = list(knn(*overlapping))
    monkeypatch.setattr(module, "_BANK", 7)  # fewer than k
    monkeypatch.setattr(module, "_QUERIES", 50)
    assert list(knn(*overlapping)) == whole


def test_separable_classes_are_all_correct_and_shuffled_labels_give_chance():
    bank, bank_labels = clusters(2000, spread=0.05, seed=3)
    queries, query_labels = clusters(1000, spread=0.05, seed=4)
    assert list(knn(bank, bank_labels, queries, query_labels)) == [("nn", 1.0), ("knn", 1.0)]
    features = np.random.default_rng(5).standard_normal((3000, 8), np.float32)
    labels = np.random.default_rng(6).integers(0, 5, 3000)
    for share in dict(knn(features[:2000], labels[:2000], features[2000:], labels[2000:])).values():
        assert share == pytest.approx(1 / 5, abs=5 * np.sqrt(0.2 * 0.8 / 1000))


def test_near_neighbours_outvote_many_far_ones():
    angles = np.array([0.0, 0.8, 0.8, 0.8])
    bank, labels = np.stack([np.cos(angles), np.sin(angles)], axis=1), np.array([1, 0, 0, 0])
    query = np.array([[1.0, 0.0]])
    assert dict(knn(bank, labels, query, [1], k=4)) == {"nn": 1, "knn": 1}
    assert dict(knn(bank, labels, query, [0], k=4, temperature=10)) == {"nn": 0, "knn": 1}
    assert dict(knn(bank, labels, query, [1], k=4, temperature=1e-6)) == {"nn": 1, "knn": 1}


def test_the_norm_of_a_feature_does_not_matter(overlapping):
    bank, bank_labels, queries, query_labels = overlapping
    longer = queries * np.exp2(np.arange(len(queries)) % 9)[:, None].astype(np.float32)  # exact in floating point
    assert list(knn(bank * 4, bank_labels, longer, query_labels)) == list(knn(*overlapping))


def test_a_bank_smaller_than_k_votes_as_a_whole():
    bank, labels = np.eye(3, dtype=np.float32), np.array([4, 7, 7])
    assert dict(knn(bank, labels, bank, labels)) == {"nn": 1, "knn": 1}
    assert dict(knn(bank[:1], labels[:1], bank, labels)) == {"nn": 1 / 3, "knn": 1 / 3}


def test_samples_without_a_label_are_ignored(overlapping):
    bank, bank_labels, queries, query_labels = (x.copy() for x in overlapping)
    bank_labels[::3], query_labels[::2] = -1, -1
    bank[::3], queries[::2] = np.nan, np.nan  # never read
    kept, asked = bank_labels >= 0, query_labels >= 0
    expected = list(knn(bank[kept], bank_labels[kept], queries[asked], query_labels[asked]))
    assert list(knn(bank, bank_labels, queries, query_labels)) == expected


def test_of_equal_similarities_the_lower_row_comes_first(small_blocks):
    rng = np.random.default_rng(7)
    # Whole numbers have exact products, in whatever order they are summed.
    bank = torch.from_numpy(rng.integers(-1, 2, (1000, 4)).astype(np.float32))
    queries = torch.from_numpy(rng.integers(-2, 3, (90, 4)).astype(np.float32))
    products = (queries @ bank.T).numpy()
    expected = np.argsort(-products, axis=1, kind="stable")
    for k in (1, 20, 400, 1000, 5000):
        values, rows = nearest(bank, queries, k)
        np.testing.assert_array_equal(rows, expected[:, :k])
        np.testing.assert_array_equal(values, np.take_along_axis(products, expected[:, :k], axis=1))


def test_a_tie_for_the_last_place_goes_to_the_lower_row():
    for bank in ([[3.0], [1.0], [2.0], [1.0], [1.0]], [[1.0], [1.0], [2.0], [1.0], [3.0]]):
        rows = nearest(torch.tensor(bank), torch.ones(1, 1), 3)[1][0].tolist()
        assert rows == sorted(range(5), key=lambda row: (-bank[row][0], row))[:3]
    # Wide enough for topk to return equal values in another order.
    bank = torch.zeros(5000, 1)
    bank[4000:4003, 0] = torch.tensor([1.0, 2.0, 3.0])
    assert nearest(bank, torch.ones(1, 1), 4)[1].tolist() == [[4002, 4001, 4000, 0]]


def test_of_equal_votes_the_nearer_class_wins():
    similarities = torch.tensor([[1.0, 1.0, 0.5], [1.0, 1.0, 1.0], [0.9, 0.9, 0.9]])
    labels = torch.tensor([[8, 2, 5], [3, 1, 1], [6, 4, 9]])
    assert vote(similarities, labels, TEMPERATURE).tolist() == [8, 1, 6]


def test_memory_mapped_and_read_only_arrays_are_accepted(overlapping):
    locked = [x.copy() for x in overlapping]
    for array in locked:
        array.setflags(write=False)
    assert list(knn(*locked)) == list(knn(*overlapping))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"bank_labels": [-1, -1]}, "the bank: no sample has a label"),
        ({"query_labels": [-1, -1]}, "the queries: no sample has a label"),
        ({"query_labels": [1]}, "the queries: 2 samples but 1 labels"),
        ({"bank": [[1, 2], [3, float("nan")]]}, "the bank: the features are not all finite"),
        ({"k": 0}, "k is 0"),
        ({"temperature": 0}, "the temperature above 0"),
    ],
)
def test_invalid_arguments_are_errors(changed, message):
    pair = [[1.0, 2.0], [3.0, 1.0]]
    arguments = {"bank": pair, "bank_labels": [0, 1], "queries": pair, "query_labels": [0, 1]}
    with pytest.raises(ValueError, match=message):
        list(knn(**arguments | changed))
