"""Prototype sets of scores: any number that says how hard an image is takes the place of its distance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mimcl.curriculum.moving_scores import scaled
from mimcl.curriculum.prototypes import FORMAT, PrototypeSet, cluster_sizes


def make_score_set(
    scores: NDArray[np.floating], cluster: NDArray[np.int32], source: Mapping[str, Any], info: Mapping[str, Any]
) -> PrototypeSet:
    """Make a set of scores (N,), higher = harder, scaled over all images: 0 = the easiest one, 1 = the hardest.

    `cluster` (N,) is each image's, numbered from 0 without gaps; -1 for a bad image, whose score does not count and
    whose distance is 1. A centroid is its cluster's mean score, (K, 1). `source` describes the scores; it has a name.
    Raises ValueError if all scores are equal.
    """
    known = cluster >= 0
    raw, distance = np.full(len(scores), np.nan, np.float32), np.ones(len(scores), np.float32)
    raw[known], distance[known] = scores[known], scaled(scores[known])
    sizes = cluster_sizes(cluster, int(cluster.max()) + 1)
    means = np.bincount(cluster[known], scores[known].astype(np.float64)) / sizes
    found = {
        "format": FORMAT,
        **info,
        "scores": {**source, "lowest": float(scores[known].min()), "highest": float(scores[known].max())},
        "k": len(sizes),
        "normalisation": "score: min-max over all images",
        "cluster_sizes": [int(sizes.min()), int(sizes.max())],
        "samples": len(cluster),
    }
    return PrototypeSet(cluster, raw, distance, means.astype(np.float32)[:, None], found)
