"""Prototypes of a data set: k-means in feature space, and each sample's distance to its own prototype.

Lin et al., CVPR 2025 (arXiv 2411.10685): features standardised, then of unit length; k-means, K by the Davies-Bouldin
index; Euclidean distance to the own centroid, min-max normalised inside the cluster: 0 = typical.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

FORMAT = "mimcl-prototypes/1"
ITERATIONS = 25
FLAT = 1e-5  # a cluster whose distances span less than this share of the largest has no typical member

Features = NDArray[np.float32]  # (N, D), one row a sample
Labels = NDArray[np.integer]  # (N,), each the row of a centroid
Singletons = Literal["far", "near"]

_CHUNK = 16_384  # rows at a time wherever a float64 copy of features is needed
_ARRAYS = ("centroids.npy", "train.arrow")
_COLUMNS = ("cluster", "raw_distance", "distance")


# (open files, all else that the check depends on, the check): may leave out what these files have passed before.
CheckOnce = Callable[[Sequence[BinaryIO], str, Callable[[], None]], None]
_CHECKS = 1  # the version of what `_check` finds out; raised with it, all are checked anew


def always(files: Sequence[BinaryIO], claim: str, check: Callable[[], None]) -> None:
    """A CheckOnce that remembers nothing."""
    check()


class PrototypeError(Exception):
    """A stored set that is missing, damaged, made for something else, or in the way; the message is one line."""


def standardise(features: Features) -> Features:
    """(f - mean) / (std + 1e-6) for each dimension over the data set, then unit length for each sample.

    `features` (N, D) float32 is overwritten and returned: at ImageNet's size a copy would cost gigabytes. Sums are in
    float64. A sample that equals the mean stays zero. ValueError for features that are not finite.
    """
    count, chunks = len(features), _chunks(len(features), _CHUNK)
    mean = sum(features[rows].sum(0, dtype=np.float64) for rows in chunks) / count
    variance = sum(((features[rows] - mean) ** 2).sum(0) for rows in chunks) / count
    if not np.isfinite(variance).all():
        raise ValueError("the features are not all finite numbers")
    for rows in chunks:
        scaled = (features[rows] - mean) / (np.sqrt(variance) + 1e-6)
        features[rows] = scaled / np.maximum(np.linalg.norm(scaled, axis=1, keepdims=True), 1e-12)
    return features


def kmeans(features: Features, k: int, seed: int, iterations: int = ITERATIONS) -> tuple[Features, NDArray[np.int32]]:
    """Centroids (k, D) float32 and every sample's nearest one (N,) int32, by exact search.

    Lloyd's algorithm (faiss) from k random samples, on at most 256 random samples for each centroid; the best of five
    runs where k <= 64: one bad start spoils much of so few clusters, and five cost little. ValueError unless k <= N.
    """
    import faiss

    if not 1 <= k <= len(features):
        raise ValueError(f"{k} clusters cannot be made of {len(features)} samples")
    start = int(np.random.default_rng([seed, 0]).integers(2**31))  # faiss wants a C int
    options = {"niter": iterations, "min_points_per_centroid": 1, "max_points_per_centroid": 256}
    search = faiss.Kmeans(features.shape[1], k, seed=start, nredo=5 if k <= 64 else 1, **options)
    search.train(features)
    index = faiss.IndexFlatL2(features.shape[1])
    index.add(search.centroids)
    labels = np.concatenate([index.search(features[rows], 1)[1][:, 0] for rows in _chunks(len(features), _CHUNK)])
    return search.centroids, labels.astype(np.int32)


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


def choose_k(features: Features, seed: int) -> tuple[int, list[tuple[int, float]]]:
    """The number of clusters with the lowest Davies-Bouldin index, and the grid of (k, index) it was chosen from.

    Eight values, evenly spaced in the logarithm, from sqrt(N)/4 to min(4 sqrt(N), N/20), at least 2. Each is tried with
    10 iterations on the same random samples, 40 for each cluster of the largest k: enough to place a centroid, and
    20 million million operations for ImageNet (N = 1.3 million, D = 384), some minutes on two cores.
    """
    count = len(features)
    if count < 2 or not np.ptp(features, axis=0).any():
        raise ValueError(f"the {count} images are all alike in these features: there is nothing to cluster")
    high = max(min(4 * math.sqrt(count), count / 20), 2)
    low = min(max(math.sqrt(count) / 4, 2), high)
    grid = sorted({round(float(k)) for k in np.geomspace(low, high, 8)})
    random = np.random.default_rng([seed, 1])
    chosen = random.choice(count, min(count, 40 * grid[-1]), replace=False)
    sample, scores = features[np.sort(chosen)], []
    for k in grid:
        centroids, labels = kmeans(sample, k, seed, iterations=10)
        scores.append((k, davies_bouldin(sample, labels, centroids)))
    return min(scores, key=lambda score: score[1])[0], scores


def cluster_distances(features: Features, centroids: NDArray[np.floating], labels: Labels) -> NDArray[np.float32]:
    """Euclidean distance of each sample (N, D) to the centroid (K, D) that its label names, (N,) float32."""
    raw = np.empty(len(features), np.float32)
    for rows in _chunks(len(features), _CHUNK):
        raw[rows] = np.linalg.norm(features[rows].astype(np.float64) - centroids[labels[rows]], axis=1)
    return raw


def normalise_distances(
    raw: NDArray[np.floating], labels: Labels, k: int, min_cluster: int = 3, singletons: Singletons = "far"
) -> NDArray[np.float32]:
    """(raw - min) / (max - min) inside each of the k clusters, (N,) float32 in [0, 1], 0 = most typical.

    A cluster with fewer than `min_cluster` members, or without a spread of distances, has no typical member: all of it
    is 1 for "far", 0 for "near". The published code is "near" with `min_cluster` 1. ValueError if all samples come out
    equal: such distances order nothing.
    """
    raw = raw.astype(np.float64)
    low, high = np.full(k, np.inf), np.full(k, -np.inf)
    np.minimum.at(low, labels, raw)
    np.maximum.at(high, labels, raw)
    span = high - low
    typical = (np.bincount(labels, minlength=k) >= min_cluster) & (span > FLAT * high)
    span[~typical] = 1
    scaled = (raw - low[labels]) / span[labels]
    distance = np.where(typical[labels], scaled, {"far": 1.0, "near": 0.0}[singletons]).astype(np.float32)
    if distance.min() == distance.max():
        raise ValueError("all distances are equal: no sample is more typical than another; use fewer clusters")
    return distance


@dataclass(frozen=True)
class PrototypeSet:
    """Clusters and distances of every sample, in the row order of the index, and where they come from."""

    cluster: NDArray[np.int32]  # (N,)
    raw_distance: NDArray[np.float32]  # (N,)
    distance: NDArray[np.float32]  # (N,) in [0, 1], 0 = typical
    centroids: Features  # (K, D), in the space of standardised features of unit length
    info: dict[str, Any]  # prototypes.json without its digests of the other files

    def save(
        self, folder: str | os.PathLike, overwrite: bool = False, files: Mapping[str, bytes] | None = None
    ) -> None:
        """Write the set and further `files` as a whole, never half.

        PrototypeError if `folder` exists, unless `overwrite`; after a failure it is as it was.
        """
        folder = Path(folder)
        if folder.exists() and not overwrite:
            raise PrototypeError(f"{folder} exists: choose another name or overwrite it")
        aside, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{end}") for end in ("tmp", "old"))
        shutil.rmtree(aside, ignore_errors=True)  # left by a process that was killed
        aside.mkdir(parents=True)
        try:
            table = pa.record_batch([pa.array(getattr(self, name)) for name in _COLUMNS], names=_COLUMNS)
            with pa.OSFile(str(aside / "train.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
                writer.write_batch(table)
            np.save(aside / "centroids.npy", self.centroids, allow_pickle=False)
            info = {**self.info, "xxh128": {name: _digest(aside / name) for name in _ARRAYS}}
            (aside / "prototypes.json").write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
            for name, content in (files or {}).items():
                (aside / name).write_bytes(content)
            for path in (*aside.iterdir(), aside):
                _flush(path)
            if folder.exists():  # a folder that is not empty cannot be renamed over
                folder.rename(old)
            aside.rename(folder)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            if old.exists():
                old.rename(folder)
            raise
        _flush(folder.parent)
        shutil.rmtree(old, ignore_errors=True)

    @classmethod
    def load(
        cls, folder: str | os.PathLike, index_fingerprint: str | None, check_once: CheckOnce = always
    ) -> PrototypeSet:
        """The set in `folder`, arrays memory-mapped; PrototypeError if it is missing, for another index, or damaged.

        None takes a set for any index: to look at, not to draw by. `check_once` may know that these files were checked
        before, and spare their being read.
        """
        folder, advice = Path(folder), "run `mimcl prototypes build`"
        if not (folder / "prototypes.json").is_file():
            raise PrototypeError(f"no prototypes in {folder}: {advice}")
        try:
            info = json.loads((folder / "prototypes.json").read_text(encoding="utf-8"))
            if info["format"] != FORMAT:
                raise PrototypeError(f"{folder} has format {info['format']!r}, this version reads {FORMAT!r}: {advice}")
            if (made_for := info["index_fingerprint"]) != index_fingerprint and index_fingerprint is not None:
                raise PrototypeError(f"{folder} was made for index {made_for}, not {index_fingerprint}: {advice}")
            digests = info.pop("xxh128")
            with ExitStack() as opened:
                files = [opened.enter_context(_open(folder / name)) for name in _ARRAYS]
                mapped = [pa.py_buffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) for file in files]
                check_once(files, json.dumps([_CHECKS, digests]), lambda: _check(mapped, digests))
            arrays = _arrays(*mapped)
        except PrototypeError:
            raise
        except Exception as error:  # whatever the libraries raise about files that they did not write
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise PrototypeError(f"{folder} is damaged ({reason}): {advice}") from error
        return cls(**arrays, info=info)


def build_prototypes(
    features: Features,
    k: int | None,
    seed: int,
    *,
    features_name: str,
    features_reason: str,
    index_fingerprint: str,
    iterations: int = ITERATIONS,
    min_cluster: int = 3,
    singletons: Singletons = "far",
) -> PrototypeSet:
    """From features (N, D) float32, rows as in the index and overwritten (see `standardise`), to prototypes.

    `k` None chooses it; the texts are only recorded. ValueError if there are no k clusters or all distances are equal.
    """
    features = standardise(features)
    chosen, scores = choose_k(features, seed) if k is None else (k, None)
    centroids, cluster = kmeans(features, chosen, seed, iterations)
    raw = cluster_distances(features, centroids, cluster)
    distance = normalise_distances(raw, cluster, chosen, min_cluster, singletons)
    sizes = np.bincount(cluster, minlength=chosen).tolist()
    info = {
        "format": FORMAT,
        "features": features_name,
        "features_reason": features_reason,
        "k": chosen,
        "seed": seed,
        "iterations": iterations,
        "normalisation": "features: standardised, unit length; distance: min-max inside the cluster",
        "singletons": singletons,
        "min_cluster": min_cluster,
        "davies_bouldin": [list(score) for score in scores] if scores else None,
        "cluster_sizes": [min(sizes), max(sizes)],
        "index_fingerprint": index_fingerprint,
        "samples": len(features),
    }
    return PrototypeSet(cluster, raw, distance, centroids, info)


def _chunks(count: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, count, size)]


def _arrays(centroids: pa.Buffer, train: pa.Buffer) -> dict[str, NDArray]:
    """Columns and centroids, as views of their files."""
    stream = pa.BufferReader(centroids)
    np.lib.format.read_magic(stream)
    shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    placed = np.frombuffer(centroids, dtype, math.prod(shape), stream.tell()).reshape(shape)
    table = pa.ipc.open_file(train).get_batch(0)
    table.validate()  # the extent of each column: Arrow trusts what it reads
    return {name: table[name].to_numpy(zero_copy_only=True) for name in _COLUMNS} | {"centroids": placed}


def _check(mapped: list[pa.Buffer], digests: dict[str, str]) -> None:
    """Reads all of a set. Raises ValueError, or what Arrow and numpy raise, unless it is one that was written so."""
    if digests != {name: xxhash.xxh128_hexdigest(buffer) for name, buffer in zip(_ARRAYS, mapped, strict=True)}:
        raise ValueError("the arrays are not those that were written")
    _check_arrays(**_arrays(*mapped))


def _check_arrays(cluster: NDArray, raw_distance: NDArray, distance: NDArray, centroids: NDArray) -> None:
    """Raises ValueError for arrays that `build_prototypes` never makes."""
    kinds = [(array.dtype, array.ndim) for array in (cluster, raw_distance, distance, centroids)]
    if kinds != [(np.int32, 1), (np.float32, 1), (np.float32, 1), (np.float32, 2)]:
        raise ValueError("the arrays are of other kinds than those of a prototype set")
    if not (cluster.min() >= 0 and cluster.max() < len(centroids)):
        raise ValueError("a cluster is none of the centroids'")
    if not (distance.min() >= 0 and distance.max() <= 1):  # false for NaN as well
        raise ValueError("a distance is not from 0 to 1")


def _open(path: Path) -> BinaryIO:
    if not path.is_file():  # opening a pipe would wait for ever
        raise ValueError(f"{path.name} is missing or no regular file")
    return open(path, "rb")


def _digest(path: Path) -> str:
    with pa.memory_map(str(path)) as file:
        return xxhash.xxh128_hexdigest(file.read_buffer())


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
