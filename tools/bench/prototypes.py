"""Measure the anonymous memory of building prototypes and compare it with the size of the feature matrix.

    python tools/bench/prototypes.py

Clustered random features stand in for an extractor's, in files as `mimcl prototypes build` writes them. The rest is the
real build: k-means on a sample, assignment part by part, distances, the saved set.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from mimcl.cli.prototypes.workspace import BuildFolder
from mimcl.curriculum.clustering import SAMPLE, normalise_distances
from mimcl.curriculum.kmeans import ITERATIONS
from mimcl.curriculum.prototypes import PrototypeSet, make_info

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.anonymous_memory import PeakMemory, anonymous_mb
from bench.synthetic_index import bare_index

_SHARD = 2500  # images, as in 256 MB of ImageNet


@contextmanager
def measured(what: str) -> Iterator[None]:
    """Print the duration of the block, and by how much anonymous memory exceeded that at its start."""
    before, began = anonymous_mb(), time.perf_counter()
    with PeakMemory() as memory:
        yield
    print(f"  {what:<12} {time.perf_counter() - began:7.1f} s  {max(0.0, memory.peak - before):7.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=300_000, help="images (default 300000)")
    parser.add_argument("--width", type=int, default=384, help="dimensions of a feature (default 384)")
    parser.add_argument("--k", type=int, default=500, help="number of prototypes; 0 chooses it (default 500)")
    parser.add_argument("--sample", type=int, default=SAMPLE, help=f"images for k-means (default {SAMPLE})")
    options = parser.parse_args()
    index, megabytes = bare_index(np.arange(options.rows) // _SHARD), 4e-6 * options.rows * options.width
    print(f"{options.rows:,} x {options.width} features, {megabytes:,.0f} MB on disk; memory in addition:")
    with tempfile.TemporaryDirectory() as folder:
        building, rng = BuildFolder(Path(folder) / "building", index), np.random.default_rng(0)
        centres = rng.standard_normal((200, options.width), np.float32)
        with measured("features"):
            for part, rows in enumerate(building.features.chunks):
                noise = rng.standard_normal((len(rows), options.width), np.float32)
                building.features.write(part, noise + centres[rng.integers(0, 200, len(rows))])
        settings = {"k": options.k or None, "seed": 0, "sample": options.sample, "iterations": ITERATIONS}
        with measured("k-means"):
            building.compute_clusters(settings)
        clusters = building.read_clusters(settings)
        with measured("assignment"):
            building.assign(clusters, range(len(building.assigned.chunks)))
        with measured("the set"):
            cluster, raw, distance = building.columns()
            normalise_distances(raw, cluster, len(clusters.centroids), out=distance)
            info = make_info(clusters, cluster, {"index_fingerprint": ""})
            PrototypeSet(cluster, raw, distance, clusters.centroids, info).save(Path(folder) / "set")


if __name__ == "__main__":
    main()
