"""Clustering: each step against its formula; features in parts against the same in one array."""

import tracemalloc

import numpy as np
import pytest
from helpers.typicality import blobs
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import davies_bouldin_score

from mimcl.curriculum import clustering
from mimcl.curriculum.clustering import (
    Standardiser,
    choose_k,
    davies_bouldin,
    group_clusters,
    make_clusters,
    normalise_distances,
)
from mimcl.curriculum.kmeans import kmeans


def standardised(features):
    return Standardiser.fit([features])(features)


def cut(features, *places):
    return np.split(features, places)


def test_standardising_matches_the_formula_over_all_parts_and_chunks(monkeypatch):
    features = np.random.default_rng(0).normal([5, -2, 0], [1, 30, 0.01], (1000, 3)).astype(np.float32)
    features = np.column_stack([features, np.full(1000, 7, np.float32)])  # a dimension that says nothing
    before = features.copy()
    exact = (features - features.mean(0, dtype=np.float64)) / (features.std(0, dtype=np.float64) + 1e-6)
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    monkeypatch.setattr(clustering, "_CHUNK", 77)
    parts = cut(features, 1, 200, 277, 900)
    standard = Standardiser.fit(parts)
    np.testing.assert_allclose(np.concatenate([standard(part) for part in parts]), exact, atol=1e-6)
    np.testing.assert_array_equal(features, before)


def test_standardising_keeps_precision_far_from_zero_and_refuses_what_is_not_finite():
    noise = np.random.default_rng(0).normal(0, 1, (50_000, 2))
    features = (noise + 10_000).astype(np.float32)
    exact = features.astype(np.float64) - features.mean(0, dtype=np.float64)
    exact /= exact.std(0)
    np.testing.assert_allclose(standardised(features), exact / np.linalg.norm(exact, axis=1, keepdims=True), atol=1e-4)
    for bad in (np.nan, np.inf):
        broken = np.ones((5, 2), np.float32)
        broken[3, 1] = bad
        with pytest.raises(ValueError, match="finite"), np.errstate(invalid="ignore"):
            Standardiser.fit(cut(broken, 2))


@pytest.mark.parametrize("k", [6, None])
def test_parts_are_clustered_as_one_array_is(k):
    """Sums are added in another order; everything else is computed on the same rows."""
    features, _ = blobs(7, each=300)
    parts = cut(features, 1, 500, 1024)
    one, several = make_clusters([features], k, 0), make_clusters(parts, k, 0)
    np.testing.assert_allclose(several.centroids, one.centroids, atol=1e-5)
    cluster, raw = one.assign(features)
    in_parts = [np.concatenate(column) for column in zip(*map(several.assign, parts), strict=True)]
    np.testing.assert_array_equal(in_parts[0], cluster)
    np.testing.assert_allclose(in_parts[1], raw, atol=1e-5)
    assert (several.scores is None) == (k is not None)


def test_kmeans_on_a_sample_gives_centroids_near_all_rows(monkeypatch):
    features, groups = blobs(1, each=500)
    seen = []
    monkeypatch.setattr(clustering, "kmeans", lambda rows, *more: seen.append(rows) or kmeans(rows, *more))
    found = make_clusters(cut(features, 1000, 2000), 6, 0, sample=200)
    assert [rows.shape for rows in seen] == [(200, features.shape[1])]
    rows = {row.tobytes() for row in found.standardiser(features)}
    assert all(row.tobytes() in rows for row in seen[0])
    assert len(set(zip(groups, found.assign(features)[0], strict=True))) == 6
    make_clusters([features], 2, 0)
    assert len(seen[1]) == 2 * 256  # no more than help to place two centroids
    assert not np.array_equal(make_clusters([features], 6, 1, sample=200).centroids, found.centroids)
    with pytest.raises(ValueError, match="201 clusters.* 200 samples"):
        make_clusters([features], 201, 0, sample=200)


def test_a_small_sample_bounds_the_grid_of_k():
    features = blobs(9, groups=5, each=400)[0]
    _, scores = choose_k([features], Standardiser.fit([features]), seed=0, sample=300)
    assert [k for k, _ in scores][-1] == 15


@pytest.mark.parametrize(("k", "offset"), [(2, 0), (17, 0), (1100, 0), (17, 50)])
def test_davies_bouldin_agrees_with_scikit_learn(k, offset):
    rng = np.random.default_rng(k)
    labels = rng.permutation(np.arange(4 * k) % k)
    features = (rng.normal(offset, 1, (k, 8))[labels] + rng.normal(0, 0.5, (len(labels), 8))).astype(np.float32)
    means = np.stack([features[labels == c].mean(0, dtype=np.float64) for c in range(k)])
    expected = davies_bouldin_score(features.astype(np.float64), labels)
    assert davies_bouldin(features, labels, means) == pytest.approx(expected, rel=1e-6)
    # An empty cluster changes nothing, wherever its centroid lies.
    assert davies_bouldin(features, labels, np.vstack([means, means[:1] + 0.01])) == pytest.approx(expected, rel=1e-6)


def test_davies_bouldin_of_degenerate_clusters():
    features = np.float32([[0, 1], [0, -1], [1, 0], [-1, 0]])
    labels = np.array([0, 0, 1, 1])  # both have their mean at the origin
    assert davies_bouldin(features, labels, np.zeros((2, 2))) == davies_bouldin_score(features, labels) == 0
    with pytest.raises(ValueError, match="two clusters"):
        davies_bouldin(features, np.zeros(4, int), np.zeros((2, 2)))


def test_choice_of_k_tries_the_grid_and_takes_the_lowest_index():
    features = blobs(3, groups=5, each=60, width=24)[0]
    standard = Standardiser.fit([features])
    chosen, scores = choose_k([features], standard, seed=0)
    grid = [k for k, _ in scores]
    assert grid == [4, 5, 6, 7, 9, 11, 13, 15]  # sqrt(300) / 4 to 300 / 20
    assert chosen == min(scores, key=lambda score: score[1])[0] == 5  # the truth
    assert (chosen, scores) == choose_k([features], standard, seed=0)


@pytest.mark.parametrize("count", [2, 5, 50, 200])
def test_choice_of_k_for_few_samples(count):
    features = np.random.default_rng(0).normal(0, 1, (count, 4)).astype(np.float32)
    chosen, scores = choose_k([features], Standardiser.fit([features]), seed=0)
    assert 2 <= chosen <= max(2, count / 20)
    assert len(scores) >= 1


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 5), st.floats(0, 10, width=32)), min_size=1, max_size=40), st.booleans())
def test_normalised_distances_follow_the_rule(members, far):
    labels, raw = np.array([m[0] for m in members]), np.float32([m[1] for m in members])
    nothing = 1.0 if far else 0.0
    expected = np.full(len(raw), nothing)
    for c in range(6):
        own = raw[labels == c].astype(np.float64)
        if len(own) >= 3 and own.max() - own.min() > 1e-5 * own.max():
            expected[labels == c] = (own - own.min()) / (own.max() - own.min())
    kind = "far" if far else "near"
    if np.ptp(expected.astype(np.float32)) == 0:
        with pytest.raises(ValueError, match="distances are equal"):
            normalise_distances(raw, labels, 6, singletons=kind)
    else:
        found = normalise_distances(raw, labels, 6, singletons=kind)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_normalised_distances_by_hand(monkeypatch):
    monkeypatch.setattr(clustering, "_CHUNK", 5)
    # Three with a spread, a pair, a singleton, three without a spread, three with one below 1e-5; cluster 5 is empty.
    raw = np.float32([2, 4, 3, 5, 1, 9, 7, 7, 7, 1, 1.000001, 1])
    labels = np.array([0, 0, 0, 1, 1, 2, 3, 3, 3, 4, 4, 4])
    np.testing.assert_array_equal(normalise_distances(raw, labels, 6), [0, 1, 0.5] + 9 * [1])
    near = normalise_distances(raw, labels, 6, singletons="near")
    np.testing.assert_array_equal(near, [0, 1, 0.5] + 9 * [0])
    reference = normalise_distances(raw, labels, 6, min_cluster=1, singletons="near")
    np.testing.assert_array_equal(reference, [0, 1, 0.5, 1, 0] + 7 * [0])


def test_the_features_are_never_all_in_memory(tmp_path, monkeypatch):
    """Measures numpy's allocations, with 38 MB of features on disk."""
    monkeypatch.setattr(clustering, "_CHUNK", 512)
    parts = []
    for number in range(20):
        path = tmp_path / f"{number}.npy"
        np.save(path, np.random.default_rng(number).standard_normal((5000, 96), np.float32))
        parts.append(np.load(path, mmap_mode="r"))
    tracemalloc.start()
    try:
        found = make_clusters(parts, None, 0, sample=2000)
        raw = [found.assign(part)[1] for part in parts]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sum(map(len, raw)) == 100_000
    assert peak < sum(part.nbytes for part in parts) / 8


@pytest.mark.parametrize("singletons", ["far", "near"])
def test_samples_in_no_cluster_are_far_and_change_nothing(singletons):
    rng = np.random.default_rng(3)
    raw, labels = rng.random(9000).astype(np.float32), rng.integers(0, 7, 9000)
    labels[labels == 6] = np.arange((labels == 6).sum()) % 6
    labels[5] = 6  # alone
    expected = normalise_distances(raw, labels, 7, singletons=singletons)
    rows = np.sort(rng.choice(9000, 700, replace=False))
    more, marked = np.insert(raw, rows, np.nan), np.insert(labels, rows, -1)
    found = normalise_distances(more, marked, 7, singletons=singletons)
    assert (found[marked < 0] == 1).all()
    np.testing.assert_array_equal(found[marked >= 0], expected)
    with pytest.raises(ValueError, match="all distances are equal"):
        normalise_distances(np.full(4, np.nan, np.float32), np.full(4, -1), 2, singletons=singletons)
    with pytest.raises(ValueError, match="all distances are equal"):
        normalise_distances(np.ones(4, np.float32), np.array([0, 0, 0, -1]), 1, singletons=singletons)


@pytest.mark.parametrize(("k", "groups"), [(4, 2), (9, 3), (12, 3), (13, 4)])
def test_clusters_are_grouped_into_the_square_root_of_their_number(k, groups):
    near = np.arange(k) % groups
    centroids = np.random.default_rng(0).normal(size=(groups, 16))[near] * 9
    centroids += np.random.default_rng(1).normal(size=(k, 16)) * 0.01
    found = group_clusters(centroids.astype(np.float32), seed=3)
    assert found.dtype == np.int32
    assert sorted({*found.tolist()}) == list(range(groups))
    # Clusters are in one group if and only if their centroids are near each other.
    np.testing.assert_array_equal(found[:, None] == found, near[:, None] == near)
    np.testing.assert_array_equal(group_clusters(centroids.astype(np.float32), seed=3), found)


@pytest.mark.parametrize(("k", "groups"), [(5, 2), (100, 10), (1000, 32)])
def test_every_group_has_clusters(k, groups):
    found = group_clusters(np.random.default_rng(0).normal(size=(k, 8)).astype(np.float32), seed=0)
    np.testing.assert_array_equal(np.unique(found), np.arange(groups))


def test_groups_that_are_impossible():
    with pytest.raises(ValueError, match="3 clusters are too few for two levels; use 4 or more"):
        group_clusters(np.eye(3, dtype=np.float32), seed=0)
    with pytest.raises(ValueError, match="all centroids are equal"):
        group_clusters(np.ones((6, 4), np.float32), seed=0)
