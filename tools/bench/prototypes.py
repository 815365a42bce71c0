"""Anonymous memory of building prototypes, beside the size of the feature matrix: python tools/bench/prototypes.py

Random features in groups stand in for an extractor's, written to the parts that `mimcl prototypes build` writes; what
follows is its own: k-means on a sample, assignment part by part, distances, the stored set. --rows, --width, --k and
--sample change the sizes; --k 0 chooses K.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from mimcl.cli.prototypes.workspace import Building
from mimcl.curriculum.clustering import ITERATIONS, SAMPLE, normalise_distances
from mimcl.curriculum.prototypes import PrototypeSet, make_info

_SHARD = 2500  # images, as 256 MB of ImageNet have


def anonymous() -> int:
    """Bytes of this process's memory that are backed by no file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


@contextmanager
def measured(what: str) -> Iterator[None]:
    """Prints seconds, and the most anonymous memory above that of the beginning."""
    before, peak, ended = anonymous(), [0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.005):
            peak[0] = max(peak[0], anonymous())

    thread = threading.Thread(target=watch)
    thread.start()
    began = time.perf_counter()
    yield
    seconds = time.perf_counter() - began
    ended.set()
    thread.join()
    print(f"  {what:<12} {seconds:7.1f} s  {(peak[0] - before) / 1e6:7.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in (("rows", 300_000), ("width", 384), ("k", 500), ("sample", SAMPLE)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    shard = np.arange(asked.rows) // _SHARD
    index = SimpleNamespace(shard=shard, shards=[None] * (int(shard[-1]) + 1))
    print(
        f"{asked.rows:,} x {asked.width} features, {4e-6 * asked.rows * asked.width:,.0f} MB on the disk; peak beside"
    )
    with tempfile.TemporaryDirectory() as folder:
        building, random = Building(Path(folder) / "building", index), np.random.default_rng(0)
        centres = random.standard_normal((200, asked.width), np.float32)
        with measured("features"):
            for part, rows in enumerate(building.features.chunks):
                noise = random.standard_normal((len(rows), asked.width), np.float32)
                building.features.write(part, noise + centres[random.integers(0, 200, len(rows))])
        settings = {"k": asked.k or None, "seed": 0, "sample": asked.sample, "iterations": ITERATIONS}
        with measured("k-means"):
            building.clusters(settings)
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
