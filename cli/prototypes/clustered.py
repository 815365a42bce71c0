"""Make a prototype set of features: k-means, each image's distance to its centroid, and groups of clusters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mimcl.cli.encoders.bad_images import describe_bad
from mimcl.cli.prototypes.build_config import BuildConfig
from mimcl.cli.prototypes.measures import Measure
from mimcl.cli.prototypes.rank_zero import on_first_rank
from mimcl.cli.prototypes.workspace import BuildFolder
from mimcl.curriculum.clustering import group_clusters, normalise_distances
from mimcl.curriculum.kmeans import ITERATIONS
from mimcl.curriculum.prototypes import PrototypeSet, make_info
from mimcl.model.distributed import barrier
from mimcl.model.world import World
from mimcl.pipeline.index import ShardIndex


def cluster_images(
    index: ShardIndex, config: BuildConfig, building: BuildFolder, features: Measure, mine: range, world: World
) -> Callable[[], PrototypeSet]:
    """Cluster the features in `building`, and assign the samples of the parts `mine`; call the result on rank 0.

    Raises PrototypeError, DataError.
    """
    of_clusters = {"k": config.k, "seed": config.seed, "sample": config.sample, "iterations": ITERATIONS}
    on_first_rank(world, lambda: building.compute_clusters(of_clusters), building.folder.parent)
    clusters = building.read_clusters(of_clusters)
    building.assign(clusters, mine)
    barrier()

    def make_set() -> PrototypeSet:
        cluster, raw, distance = building.columns()
        count = len(clusters.centroids)
        normalise_distances(raw, cluster, count, config.min_cluster, config.singletons, out=distance)
        about: dict[str, Any] = {
            **features.about,
            **of_clusters,
            "singletons": config.singletons,
            "min_cluster": config.min_cluster,
            "index_fingerprint": index.fingerprint,
        }
        if config.levels > 1:
            about["parents"] = group_clusters(clusters.centroids, config.seed).tolist()
        about |= describe_bad(index, np.flatnonzero(cluster < 0))
        return PrototypeSet(cluster, raw, distance, clusters.centroids, make_info(clusters, cluster, about))

    return make_set
