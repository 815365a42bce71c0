"""K-means, and the exact search for the nearest centroid, by matrix products.

The nearest of the centroids c to a sample x has the largest x.c - |c|^2 / 2. So one matrix product of numpy's BLAS, and
a maximum in each row, assign many samples at once.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

ITERATIONS = 25
ROWS_PER_CENTROID = 256  # maximum for k-means: more would hardly move the centroid

_SCORES = 1 << 24  # float32 in memory at once: 64 MB
_ROWS = 4096  # maximum of a matrix product
_PAIRS = 1 << 22  # numbers in float64 at once, to decide what rounding leaves open
_RUNS, _FEW = 10, 64  # runs with few clusters: a bad start costs more there, and further runs cost little

Features = NDArray[np.float32]  # (n, D), one row a sample


def kmeans(features: Features, k: int, seed: int, iterations: int = ITERATIONS) -> Features:
    """Return centroids (k, D), float32, of features (n, D).

    Lloyd's algorithm from k random samples, on at most 256 random samples per centroid; for k <= 64 the best of ten
    runs. A centroid without samples moves to the sample that is farthest from its own. Raises ValueError unless
    1 <= k <= n.
    """
    if not 1 <= k <= len(features):
        raise ValueError(f"cannot make {k} clusters of {len(features)} samples; choose fewer clusters")
    random = np.random.default_rng([seed, 0])
    if len(features) > ROWS_PER_CENTROID * k:
        features = features[np.sort(random.choice(len(features), ROWS_PER_CENTROID * k, replace=False))]
    runs = [
        _lloyd(features, features[random.choice(len(features), k, replace=False)], iterations)
        for _ in range(_RUNS if k <= _FEW else 1)
    ]
    return max(runs, key=lambda run: run[1])[0]


def nearest(features: Features, centroids: Features) -> NDArray[np.int32]:
    """Return the nearest of the centroids (K, D) for each sample (n, D), int32 (n,); of equal ones the first.

    Exact: where rounding in float32 leaves open which one is nearest, float64 decides.
    """
    labels = np.empty(len(features), np.int32)
    half = (centroids.astype(np.float64) ** 2).sum(1) / 2
    longest = float(np.sqrt(np.einsum("nd,nd->n", features, features).max(initial=0)) + np.sqrt(2 * half.max()))
    margin = 2 * features.shape[1] * 2.0**-24 * longest * float(np.sqrt(2 * half.max()))  # of float32 sums, at worst
    for rows, scores in _scores(features, centroids, half):
        close = scores >= scores.max(1, keepdims=True) - np.float32(margin)
        labels[rows] = close.argmax(1)
        if len(unclear := np.flatnonzero(close.sum(1) > 1)):
            labels[rows][unclear] = _decide(features[rows][unclear], centroids, half, close[unclear])
    return labels


def _decide(
    features: Features, centroids: Features, half: NDArray[np.float64], close: NDArray[np.bool_]
) -> NDArray[np.int32]:
    """Return the nearest centroid of each sample among those that are close, (n, K), computed in float64."""
    sample, candidate = np.nonzero(close)
    score = np.empty(len(sample))
    step = max(1, _PAIRS // features.shape[1])
    for pairs in (slice(first, first + step) for first in range(0, len(sample), step)):
        product = features[sample[pairs]].astype(np.float64) * centroids[candidate[pairs]]
        score[pairs] = product.sum(1) - half[candidate[pairs]]
    order = np.lexsort((candidate, -score, sample))
    first = np.flatnonzero(np.diff(sample[order], prepend=-1))
    return candidate[order][first].astype(np.int32)


def _lloyd(features: Features, centroids: Features, iterations: int) -> tuple[Features, float]:
    """Return the centroids after so many iterations, and the sum of the last scores: higher is better."""
    total, labels, best = 0.0, np.full(len(features), -1), np.empty(len(features), np.float32)
    squares = np.einsum("nd,nd->n", features, features)  # without a copy
    for _ in range(iterations):
        before = labels.copy()
        for rows, scores in _scores(features, centroids, (centroids.astype(np.float64) ** 2).sum(1) / 2):
            labels[rows] = scores.argmax(1)
            best[rows] = np.take_along_axis(scores, labels[rows, None], 1)[:, 0]
        total = float(best.sum(dtype=np.float64))
        if np.array_equal(labels, before):  # nothing will move any more
            break
        centroids = _means(features, labels, centroids, squares - 2 * best)
    return centroids, total


def _means(features: Features, labels: NDArray[np.int64], centroids: Features, away: Features) -> Features:
    """Return the mean of each cluster; `away` (n,) are the samples' squared distances to their centroids."""
    sums, sizes = np.zeros(centroids.shape), np.bincount(labels, minlength=len(centroids))
    for rows in (slice(first, first + _ROWS) for first in range(0, len(features), _ROWS)):
        order = np.argsort(labels[rows], kind="stable")
        ordered = labels[rows][order]
        first = np.flatnonzero(np.diff(ordered, prepend=-1))
        for members in np.split(order, first[1:]):  # np.add.reduceat would take ten times as long
            sums[labels[rows][members[0]]] += features[rows][members].sum(0)
    means = (sums / np.maximum(sizes, 1)[:, None]).astype(np.float32)
    empty = np.flatnonzero(sizes == 0)
    means[empty] = features[np.argsort(-away, kind="stable")[: len(empty)]]
    return means


def _scores(features: Features, centroids: Features, half: NDArray[np.float64]) -> Iterator[tuple[slice, Features]]:
    """Yield slices of rows and their scores x.c - |c|^2 / 2, float32 (rows, K), of bounded size.

    The slices depend on K alone: in another one, the same row may give another last bit.
    """
    step, less = max(1, min(_ROWS, _SCORES // len(centroids))), half.astype(np.float32)
    for first in range(0, len(features), step):
        rows = slice(first, first + step)
        scores = features[rows] @ centroids.T
        scores -= less
        yield rows, scores
