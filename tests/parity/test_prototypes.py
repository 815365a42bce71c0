"""Distances to prototypes agree with the prototype curriculum's reference code."""

import numpy as np

from mimcl.curriculum.clustering import cluster_distances, normalise_distances


def test_distances(golden):
    reference = golden("proto.npz")
    labels, centroids = reference["labels"], reference["centroids"]
    raw = cluster_distances(reference["features"], centroids, labels)
    np.testing.assert_allclose(raw, reference["raw_distance"], atol=1e-6, rtol=0)
    # The reference has no rule for tiny clusters, and gives 0 where a cluster has no spread.
    ours = normalise_distances(raw, labels, len(centroids), min_cluster=1, singletons="near")
    np.testing.assert_allclose(ours, reference["normalised"], atol=1e-6, rtol=0)
