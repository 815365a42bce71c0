"""K-means and the search for the nearest centroid, against faiss and by hand."""

import faiss
import numpy as np
import pytest
from helpers.typicality import blobs

from mimcl.curriculum import kmeans as module
from mimcl.curriculum.clustering import cluster_distances
from mimcl.curriculum.kmeans import kmeans, nearest


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def exactly(features: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """The first of the nearest centroids, in float64."""
    rows, centres = features.astype(np.float64), centroids.astype(np.float64)
    return np.stack([((row - centres) ** 2).sum(1) for row in rows]).argmin(1)


def by_faiss(features: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    index = faiss.IndexFlatL2(features.shape[1])
    index.add(centroids)
    return index.search(features, 1)[1][:, 0]


@pytest.mark.parametrize("width", [1, 8, 384])
@pytest.mark.parametrize("k", [1, 7, 100, 1000])
def test_labels_are_those_of_an_exact_search(width, k):
    rng = np.random.default_rng(width + k)
    features = unit(rng.standard_normal((1000, width)))
    centroids = features[rng.integers(0, 1000, k)] + rng.normal(0, 0.05, (k, width)).astype(np.float32)
    labels = nearest(features, centroids)
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, exactly(features, centroids))
    if width > 1:  # on a line, faiss rounds
        np.testing.assert_array_equal(labels, by_faiss(features, centroids))


@pytest.mark.parametrize("k", [2, 5, 33, 700])
def test_of_equal_centroids_the_first_is_nearest(k, monkeypatch):
    monkeypatch.setattr(module, "_PAIRS", 1000)
    rng = np.random.default_rng(k)
    distinct = unit(rng.standard_normal((k, 96)))
    centroids = np.concatenate([distinct, distinct[::-1], distinct])
    features = unit(rng.standard_normal((300, 96)))
    labels = nearest(features, centroids)
    np.testing.assert_array_equal(labels, nearest(features, distinct))
    assert labels.max() < k


def test_nearly_equal_centroids_are_told_apart_by_float64():
    """The centroids differ by less than float32 sums of products do."""
    rng = np.random.default_rng(0)
    features, base = unit(rng.standard_normal((500, 768))), unit(rng.standard_normal((1, 768)))
    centroids = np.float32(base + rng.normal(0, 1e-7, (40, 768)))
    np.testing.assert_array_equal(nearest(features, centroids), exactly(features, centroids))


@pytest.mark.parametrize("scores", [1, 1000, 1 << 24])
def test_labels_do_not_depend_on_the_size_of_a_product(scores, monkeypatch):
    rng = np.random.default_rng(1)
    features, centroids = unit(rng.standard_normal((500, 64))), unit(rng.standard_normal((90, 64)))
    expected = exactly(features, centroids)
    monkeypatch.setattr(module, "_SCORES", scores)
    np.testing.assert_array_equal(nearest(features, centroids), expected)
    assert nearest(features[:0], centroids).shape == (0,)


def test_kmeans_finds_groups_and_assigns_to_the_nearest():
    features, groups = blobs(1)
    centroids = kmeans(features, 6, seed=0)
    labels = nearest(features, centroids)
    assert (centroids.dtype, labels.dtype) == (np.float32, np.int32)
    assert len(set(zip(groups, labels, strict=True))) == 6
    distances = np.linalg.norm(features[:, None] - centroids, axis=2)
    np.testing.assert_array_equal(labels, distances.argmin(1))
    np.testing.assert_allclose(cluster_distances(features, centroids, labels), distances.min(1), rtol=1e-5)
    for k in (0, len(features) + 1):
        with pytest.raises(ValueError, match=f"{k} clusters.* 480 samples"):
            kmeans(features, k, seed=0)


@pytest.mark.parametrize("k", [5, 40, 200])
def test_kmeans_is_as_good_as_that_of_faiss(k):
    rng = np.random.default_rng(k)
    features = unit(rng.standard_normal((60, 64))[rng.integers(0, 60, 6000)] + rng.normal(0, 0.7, (6000, 64)))
    theirs = faiss.Kmeans(64, k, seed=1, niter=25, nredo=5 if k <= 64 else 1, min_points_per_centroid=1)
    theirs.train(features)
    cost = [
        float((cluster_distances(features, centroids, nearest(features, centroids)) ** 2).mean())
        for centroids in (kmeans(features, k, seed=0), np.asarray(theirs.centroids))
    ]
    assert cost[0] < 1.01 * cost[1]


def test_centroids_are_the_means_of_their_samples():
    features = np.random.default_rng(0).standard_normal((5000, 16)).astype(np.float32)
    centroids = kmeans(features, 20, seed=0, iterations=500)  # ends earlier: nothing moves any more
    labels = nearest(features, centroids)
    means = np.stack([features[labels == cluster].mean(0, dtype=np.float64) for cluster in range(20)])
    np.testing.assert_allclose(centroids, means, atol=1e-5)


def test_every_sample_its_own_centroid_and_more_centroids_than_distinct_samples(monkeypatch):
    monkeypatch.setattr(module, "_ROWS", 7)
    features, _ = blobs(2, each=5)
    centroids = kmeans(features, 30, seed=0)
    labels = nearest(features, centroids)
    np.testing.assert_allclose(cluster_distances(features, centroids, labels), 0, atol=1e-5)
    assert len(np.unique(labels)) == 30
    doubled = np.repeat(features, 4, axis=0)
    centroids = kmeans(doubled, 60, seed=0)
    np.testing.assert_allclose(cluster_distances(doubled, centroids, nearest(doubled, centroids)), 0, atol=1e-5)


def test_a_centroid_without_samples_moves_to_the_farthest_sample():
    features = np.float32([[0, 0]] * 50 + [[1, 0]] * 50 + [[9, 9]])
    starts = np.float32([[0, 0], [0, 0], [1, 0]])
    centroids, _ = module._lloyd(features, starts, 10)
    assert sorted(centroids.tolist()) == [[0, 0], [1, 0], [9, 9]]


def test_the_seed_decides():
    features = np.random.default_rng(0).standard_normal((3000, 8)).astype(np.float32)
    one, again, other = (kmeans(features, 70, seed) for seed in (0, 0, 1))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
