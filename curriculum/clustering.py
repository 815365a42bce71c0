"""Clusters of samples in feature space, from features that lie in parts and are never whole in memory.

Lin et al., CVPR 2025 (arXiv 2411.10685): features standardised, then of unit length; k-means, K by the Davies-Bouldin
index; Euclidean distance to the own centroid, min-max normalised inside the cluster: 0 = typical.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

ITERATIONS = 25
SAMPLE = 1 << 18  # rows that k-means learns from, at most: 0.4 GB of DINO's ViT-S features
FLAT = 1e-5  # a cluster whose distances span less than this share of the largest has no typical member

Features = NDArray[np.float32]  # (n, D), one row a sample
Labels = NDArray[np.integer]  # (n,), each the row of a centroid
Singletons = Literal["far", "near"]

_CHUNK = 16_384  # rows at a time wherever a float64 copy is needed
_PER_CENTROID = 256  # rows for each that k-means learns from: more would place it no better


@dataclass(frozen=True)
class Standard:
    """What makes features comparable: (f - mean) / (std + 1e-6) for each dimension, then unit length for each sample.

    Mean and standard deviation are those of the whole data set, float64 (D,).
    """

    mean: NDArray[np.float64]
    std: NDArray[np.float64]

    @classmethod
    def of(cls, parts: Sequence[Features]) -> Standard:
        """Read once, part by part, and combined in order (Chan, Golub, LeVeque 1979).

        ValueError for features that are not finite.
        """
        count, mean, squares = 0, 0.0, 0.0
        for part in parts:
            for rows in _chunks(len(part)):
                values = part[rows].astype(np.float64)
                more, own = len(values), values.mean(0)
                values -= own
                count, shift = count + more, own - mean
                mean = mean + shift * (more / count)
                squares = squares + (values**2).sum(0) + shift**2 * (more * (count - more) / count)
        if not np.isfinite(squares).all():
            raise ValueError("the features are not all finite numbers")
        return cls(mean, np.sqrt(squares / count))

    def __call__(self, features: Features) -> Features:
        """A standardised copy of features (n, D). A sample that equals the mean becomes zero."""
        out = np.empty(features.shape, np.float32)
        for rows in _chunks(len(features)):
            scaled = (features[rows] - self.mean) / (self.std + 1e-6)
            out[rows] = scaled / np.maximum(np.linalg.norm(scaled, axis=1, keepdims=True), 1e-12)
        return out


@dataclass(frozen=True)
class Clusters:
    """Where the prototypes lie, and how K was chosen: the index of each k that was tried, None where k was given."""

    standard: Standard
    centroids: Features  # (K, D), in the space of standardised features
    scores: list[tuple[int, float]] | None

    def assign(self, features: Features) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Each sample's nearest centroid and the Euclidean distance to it, both (n,), of features (n, D).

        Computed in chunks of these rows: the same rows in another array may differ in the last bit.
        """
        cluster, raw = np.empty(len(features), np.int32), np.empty(len(features), np.float32)
        for rows in _chunks(len(features)):
            scaled = self.standard(features[rows])
            cluster[rows] = nearest(scaled, self.centroids)
            raw[rows] = cluster_distances(scaled, self.centroids, cluster[rows])
        return cluster, raw


def make_clusters(
    parts: Sequence[Features], k: int | None, seed: int, sample: int = SAMPLE, iterations: int = ITERATIONS
) -> Clusters:
    """K-means on at most `sample` random rows of the parts, each (n, D); `k` None chooses it.

    In memory are these rows, and no more than 256 for each centroid. ValueError if there are no k clusters.
    """
    standard = Standard.of(parts)
    chosen, scores = choose_k(parts, standard, seed, sample) if k is None else (k, None)
    rows = _sample(parts, standard, min(sample, _PER_CENTROID * chosen), seed, 2)
    return Clusters(standard, kmeans(rows, chosen, seed, iterations), scores)


def kmeans(features: Features, k: int, seed: int, iterations: int = ITERATIONS) -> Features:
    """Centroids (k, D) float32 of features (n, D).

    Lloyd's algorithm (faiss) from k random samples, on at most 256 random samples for each centroid; the best of five
    runs where k <= 64: one bad start spoils much of so few clusters, and five cost little. ValueError unless k <= n.
    """
    import faiss

    if not 1 <= k <= len(features):
        raise ValueError(f"{k} clusters cannot be made of {len(features)} samples")
    start = int(np.random.default_rng([seed, 0]).integers(2**31))  # faiss wants a C int
    options = {"niter": iterations, "min_points_per_centroid": 1, "max_points_per_centroid": _PER_CENTROID}
    search = faiss.Kmeans(features.shape[1], k, seed=start, nredo=5 if k <= 64 else 1, **options)
    search.train(features)
    return search.centroids


def nearest(features: Features, centroids: Features) -> NDArray[np.int32]:
    """The nearest centroid (K, D) of each sample (n, D), int32 (n,), by exact search."""
    import faiss

    index = faiss.IndexFlatL2(features.shape[1])
    index.add(np.ascontiguousarray(centroids))
    labels = np.empty(len(features), np.int32)
    for rows in _chunks(len(features)):
        labels[rows] = index.search(features[rows], 1)[1][:, 0]
    return labels


def davies_bouldin(features: Features, labels: Labels, centroids: NDArray[np.floating]) -> float:
    """The Davies-Bouldin index (1979): mean over clusters of the largest (s_i + s_j) / |c_i - c_j|, lower is better.

    s = a cluster's mean distance to its centroid. Empty clusters do not count; coinciding centroids give 0, as in
    scikit-learn. ValueError for fewer than two clusters with members.
    """
    full, members, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    if len(full) < 2:
        raise ValueError("the Davies-Bouldin index needs two clusters with members")
    spread = np.bincount(members, cluster_distances(features, centroids, labels)) / sizes
    centres = centroids[full].astype(np.float64)
    square, worst = (centres**2).sum(1), np.empty(len(centres))
    for rows in _chunks(len(centres), 1024):
        apart = np.sqrt(np.maximum(square[rows, None] + square - 2 * centres[rows] @ centres.T, 0))
        apart[apart <= 1e-7 * math.sqrt(square.max())] = np.inf  # itself, or no distance beyond rounding
        worst[rows] = ((spread[rows, None] + spread) / apart).max(1)
    return float(worst.mean())


def choose_k(
    parts: Sequence[Features], standard: Standard, seed: int, sample: int = SAMPLE
) -> tuple[int, list[tuple[int, float]]]:
    """The number of clusters with the lowest Davies-Bouldin index, and the grid of (k, index) it was chosen from.

    Eight values, evenly spaced in the logarithm, from sqrt(N)/4 to min(4 sqrt(N), N/20, sample/20), at least 2. Each is
    tried with 10 iterations on the same random samples, 40 for each cluster of the largest k but no more than `sample`:
    enough to place a centroid, and 20 million million operations for ImageNet (N = 1.3 million, D = 384), some minutes
    on two cores.
    """
    count = sum(map(len, parts))
    high = max(min(4 * math.sqrt(count), min(count, sample) / 20), 2)
    low = min(max(math.sqrt(count) / 4, 2), high)
    grid = sorted({round(float(k)) for k in np.geomspace(low, high, 8)})
    rows, scores = _sample(parts, standard, min(sample, 40 * grid[-1]), seed, 1), []
    if count < 2 or not np.ptp(rows, axis=0).any():
        raise ValueError(f"the {count} images are all alike in these features: there is nothing to cluster")
    for k in grid:
        centroids = kmeans(rows, k, seed, iterations=10)
        scores.append((k, davies_bouldin(rows, nearest(rows, centroids), centroids)))
    return min(scores, key=lambda score: score[1])[0], scores


def cluster_distances(features: Features, centroids: NDArray[np.floating], labels: Labels) -> NDArray[np.float32]:
    """Euclidean distance of each sample (n, D) to the centroid (K, D) that its label names, (n,) float32."""
    raw = np.empty(len(features), np.float32)
    for rows in _chunks(len(features)):
        raw[rows] = np.linalg.norm(features[rows].astype(np.float64) - centroids[labels[rows]], axis=1)
    return raw


def normalise_distances(
    raw: NDArray[np.floating],
    labels: Labels,
    k: int,
    min_cluster: int = 3,
    singletons: Singletons = "far",
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """(raw - min) / (max - min) inside each of the k clusters, (N,) float32 in [0, 1], 0 = most typical.

    A cluster with fewer than `min_cluster` members, or without a spread of distances, has no typical member: all of it
    is 1 for "far", 0 for "near". The published code is "near" with `min_cluster` 1. ValueError if all samples come out
    equal: such distances order nothing. Written to `out`, where given: all three may be memory-mapped.
    """
    distance = np.empty(len(raw), np.float32) if out is None else out
    low, high, sizes = np.full(k, np.inf), np.full(k, -np.inf), np.zeros(k, np.int64)
    for rows in _chunks(len(raw)):
        np.minimum.at(low, labels[rows], raw[rows].astype(np.float64))
        np.maximum.at(high, labels[rows], raw[rows].astype(np.float64))
        sizes += np.bincount(labels[rows], minlength=k)
    span = high - low
    typical = (sizes >= min_cluster) & (span > FLAT * high)
    span[~typical] = 1
    untypical = {"far": 1.0, "near": 0.0}[singletons]
    for rows in _chunks(len(raw)):
        own = labels[rows]
        distance[rows] = np.where(typical[own], (raw[rows].astype(np.float64) - low[own]) / span[own], untypical)
    if distance.min() == distance.max():
        raise ValueError("all distances are equal: no sample is more typical than another; use fewer clusters")
    return distance


def _sample(parts: Sequence[Features], standard: Standard, size: int, seed: int, use: int) -> Features:
    """At most `size` random rows of the parts, standardised, in order; another `use` takes others."""
    count = sum(map(len, parts))
    chosen = np.arange(count)
    if size < count:
        chosen = np.sort(np.random.default_rng([seed, use]).choice(count, size, replace=False))
    out, first = np.empty((len(chosen), parts[0].shape[1]), np.float32), 0
    for part in parts:
        start, stop = np.searchsorted(chosen, (first, first + len(part)))
        out[start:stop] = standard(part[chosen[start:stop] - first])
        first += len(part)
    return out


def _chunks(count: int, size: int | None = None) -> list[slice]:
    size = size or _CHUNK
    return [slice(start, start + size) for start in range(0, count, size)]
