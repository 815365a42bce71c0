"""Cluster samples in feature space, from features stored in parts that are never all in memory.

Lin et al., CVPR 2025 (arXiv 2411.10685): features are standardised and scaled to unit length, then clustered by k-means
with K chosen by the Davies-Bouldin index. A sample's distance is the Euclidean distance to its centroid, min-max
normalised within the cluster: 0 = typical.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mimcl.curriculum.kmeans import ITERATIONS, ROWS_PER_CENTROID, Features, kmeans, nearest

SAMPLE = 1 << 18  # maximum rows for k-means: 0.4 GB of DINO ViT-S features
_MIN_RELATIVE_SPAN = 1e-5  # a cluster whose distances span less than this share of the largest has no typical member

Labels = NDArray[np.integer]  # (n,), the cluster of each sample: a row of the centroids
Singletons = Literal["far", "near"]

_CHUNK = 4096  # rows per float64 copy


@dataclass(frozen=True)
class Standardiser:
    """Scale features to (f - mean) / (std + 1e-6) in each dimension, then each sample to unit length.

    `mean` and `std`, float64 (D,), are those of the whole data set.
    """

    mean: NDArray[np.float64]
    std: NDArray[np.float64]

    @classmethod
    def fit(cls, parts: Sequence[Features]) -> Standardiser:
        """Compute mean and std in one pass over the parts, combined in order (Chan, Golub, LeVeque 1979).

        Raises ValueError for features that are not finite.
        """
        count = 0
        mean = squares = np.zeros(parts[0].shape[1])
        for part in parts:
            for rows in _chunks(len(part)):
                values = part[rows].astype(np.float64)
                more, own = len(values), values.mean(0)
                values -= own
                count, shift = count + more, own - mean
                mean = mean + shift * (more / count)
                squares = squares + (values**2).sum(0) + shift**2 * (more * (count - more) / count)
        if not np.isfinite(squares).all():
            raise ValueError("some features are not finite; check the feature extractor and its weights")
        return cls(mean, np.sqrt(squares / count))

    def __call__(self, features: Features) -> Features:
        """Return a scaled copy of features (n, D); a sample equal to the mean becomes zero."""
        out = np.empty(features.shape, np.float32)
        for rows in _chunks(len(features)):
            scaled = (features[rows] - self.mean) / (self.std + 1e-6)
            out[rows] = scaled / np.maximum(np.linalg.norm(scaled, axis=1, keepdims=True), 1e-12)
        return out


@dataclass(frozen=True)
class Clusters:
    """The prototypes, and how K was chosen: (k, Davies-Bouldin index) of each k tried, None if k was given."""

    standardiser: Standardiser
    centroids: Features  # (K, D), in the space of standardised features
    scores: list[tuple[int, float]] | None

    def assign(self, features: Features) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Return the nearest centroid of each row of features (n, D) and the Euclidean distance to it, both (n,).

        Rows are processed in chunks: in another array, the same row may give another last bit.
        """
        cluster, raw = np.empty(len(features), np.int32), np.empty(len(features), np.float32)
        for rows in _chunks(len(features)):
            scaled = self.standardiser(features[rows])
            cluster[rows] = nearest(scaled, self.centroids)
            raw[rows] = cluster_distances(scaled, self.centroids, cluster[rows])
        return cluster, raw


def make_clusters(
    parts: Sequence[Features], k: int | None, seed: int, sample: int = SAMPLE, iterations: int = ITERATIONS
) -> Clusters:
    """Run k-means on at most `sample` random rows of the parts, each (n, D); `k` None chooses K.

    At most 256 rows for each centroid are held in memory. Raises ValueError for fewer than k rows.
    """
    standardiser = Standardiser.fit(parts)
    chosen, scores = choose_k(parts, standardiser, seed, sample) if k is None else (k, None)
    rows = _sample(parts, standardiser, min(sample, ROWS_PER_CENTROID * chosen), seed, 2)
    return Clusters(standardiser, kmeans(rows, chosen, seed, iterations), scores)


def group_clusters(centroids: Features, seed: int) -> NDArray[np.int32]:
    """Group K clusters by k-means on their centroids (K, D), into about sqrt(K), but at least 2: the upper level.

    Returns the group of each (K,). Raises ValueError for fewer than 4 clusters, and where all centroids are equal.
    """
    if len(centroids) < 4:
        raise ValueError(f"{len(centroids)} clusters are too few for two levels; use 4 or more")
    groups = nearest(centroids, kmeans(centroids, max(2, round(math.sqrt(len(centroids)))), seed))
    found, numbered = np.unique(groups, return_inverse=True)  # k-means may leave one empty
    if len(found) < 2:
        raise ValueError("all centroids are equal, so they have no groups; use one level")
    return numbered.astype(np.int32)


def davies_bouldin(features: Features, labels: Labels, centroids: NDArray[np.floating]) -> float:
    """Return the Davies-Bouldin index (1979): mean over clusters of the largest (s_i + s_j) / |c_i - c_j|.

    Lower is better; s is a cluster's mean distance to its centroid. Empty clusters are ignored; coinciding centroids
    give 0, as in scikit-learn. Raises ValueError for fewer than two clusters with members.
    """
    full, members, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    if len(full) < 2:
        raise ValueError(f"the Davies-Bouldin index needs two clusters with members ({len(full)} found)")
    spread = np.bincount(members, cluster_distances(features, centroids, labels)) / sizes
    centres = centroids[full].astype(np.float64)
    square, worst = (centres**2).sum(1), np.empty(len(centres))
    for rows in _chunks(len(centres), 1024):
        apart = np.sqrt(np.maximum(square[rows, None] + square - 2 * centres[rows] @ centres.T, 0))
        apart[apart <= 1e-7 * math.sqrt(square.max())] = np.inf  # itself, or equal up to rounding
        worst[rows] = ((spread[rows, None] + spread) / apart).max(1)
    return float(worst.mean())


def choose_k(
    parts: Sequence[Features], standardiser: Standardiser, seed: int, sample: int = SAMPLE
) -> tuple[int, list[tuple[int, float]]]:
    """Choose the number of clusters with the lowest Davies-Bouldin index; also return the grid of (k, index).

    The grid has eight values, evenly spaced on a log scale, from sqrt(N)/4 to min(4 sqrt(N), N/20, sample/20), at least
    2. Each is tried with 10 iterations on the same random samples, 40 per cluster of the largest k but at most
    `sample`: enough to place a centroid, and 2e13 operations for ImageNet (N = 1.3 million, D = 384), some minutes on
    two cores.
    """
    count = sum(map(len, parts))
    high = max(min(4 * math.sqrt(count), min(count, sample) / 20), 2)
    low = min(max(math.sqrt(count) / 4, 2), high)
    grid = sorted({round(float(k)) for k in np.geomspace(low, high, 8)})
    rows = _sample(parts, standardiser, min(sample, 40 * grid[-1]), seed, 1)
    if count < 2 or not np.ptp(rows, axis=0).any():
        raise ValueError(f"all {count} images have the same features; choose other features or more images")
    scores: list[tuple[int, float]] = []
    for k in grid:
        centroids = kmeans(rows, k, seed, iterations=10)
        scores.append((k, davies_bouldin(rows, nearest(rows, centroids), centroids)))
    return min(scores, key=lambda score: score[1])[0], scores


def cluster_distances(features: Features, centroids: NDArray[np.floating], labels: Labels) -> NDArray[np.float32]:
    """Return the Euclidean distance of each sample (n, D) to the centroid (K, D) of its label, (n,) float32."""
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
    """Return (raw - min) / (max - min) within each of the k clusters, (N,) float32 in [0, 1], 0 = most typical.

    A cluster with fewer than `min_cluster` members, or with equal distances, has no typical member: its samples get 1
    for "far", 0 for "near". The published code is "near" with `min_cluster` 1. A sample with label -1 is in no cluster
    and gets 1. The result is written to `out` if given; `raw`, `labels` and `out` may be memory-mapped. Raises
    ValueError if all results, except those of label -1, are equal.
    """
    distance = np.empty(len(raw), np.float32) if out is None else out
    low, high, sizes = np.full(k, np.inf), np.full(k, -np.inf), np.zeros(k, np.int64)
    for rows in _chunks(len(raw)):
        known = labels[rows] >= 0
        own, values = labels[rows][known], raw[rows][known].astype(np.float64)
        np.minimum.at(low, own, values)
        np.maximum.at(high, own, values)
        sizes += np.bincount(own, minlength=k)
    span = high - low
    typical = (sizes >= min_cluster) & (span > _MIN_RELATIVE_SPAN * high)
    span[~typical] = 1
    untypical = {"far": 1.0, "near": 0.0}[singletons]
    least, most = np.inf, -np.inf
    for rows in _chunks(len(raw)):
        known = labels[rows] >= 0
        own, values = labels[rows][known], raw[rows][known].astype(np.float64)
        found = np.where(typical[own], (values - low[own]) / span[own], untypical).astype(np.float32)
        least, most = min(least, found.min(initial=np.inf)), max(most, found.max(initial=-np.inf))
        distance[rows] = 1
        distance[rows][known] = found
    if least >= most:
        raise ValueError("all distances are equal, so no sample is more typical than another; use fewer clusters")
    return distance


def _sample(parts: Sequence[Features], standardiser: Standardiser, size: int, seed: int, stream: int) -> Features:
    """Return at most `size` random rows of the parts, standardised, in order; `stream` selects other rows."""
    count = sum(map(len, parts))
    chosen = np.arange(count)
    if size < count:
        chosen = np.sort(np.random.default_rng([seed, stream]).choice(count, size, replace=False))
    out, first = np.empty((len(chosen), parts[0].shape[1]), np.float32), 0
    for part in parts:
        start, stop = np.searchsorted(chosen, (first, first + len(part)))
        out[start:stop] = standardiser(part[chosen[start:stop] - first])
        first += len(part)
    return out


def _chunks(count: int, size: int | None = None) -> list[slice]:
    size = size or _CHUNK
    return [slice(start, start + size) for start in range(0, count, size)]
