"""Prototype sets: each sample's distance to its prototype (see `clustering.py`), and how they are stored."""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from mimcl.curriculum.clustering import SAMPLE, Clusters, Singletons, make_clusters, normalise_distances
from mimcl.curriculum.kmeans import ITERATIONS, Features

FORMAT = "mimcl-prototypes/1"
_ARRAYS = ("centroids.npy", "train.arrow")
_COLUMNS = ("cluster", "raw_distance", "distance")

# Called with open files, a string of all else that the check depends on, and the check: runs the check, or skips it if
# the same files have passed before.
CheckOnce = Callable[[Sequence[BinaryIO], str, Callable[[], None]], None]
_CHECK_VERSION = 1  # of `_check`: increase it with every change, so that all files are checked again


def check_always(files: Sequence[BinaryIO], claim: str, check: Callable[[], None]) -> None:
    """A CheckOnce that always runs the check."""
    check()


class PrototypeError(Exception):
    """A prototype set is missing, damaged, made for another index, or cannot be built; the message is one line."""


@dataclass(frozen=True)
class PrototypeSet:
    """The cluster and distance of every sample, in the row order of the index, and how they were made."""

    cluster: NDArray[np.int32]  # (N,), -1 for an image without features, which is bad
    raw_distance: NDArray[np.float32]  # (N,), NaN for such an image, whose distance is 1
    distance: NDArray[np.float32]  # (N,) in [0, 1], 0 = typical
    centroids: Features  # (K, D), in the space of standardised features of unit length
    info: dict[str, Any]  # prototypes.json without the digests of the other files

    @property
    def parents(self) -> NDArray[np.int32] | None:
        """The upper-level cluster of each cluster, (K,); None if there is one level."""
        return np.array(self.info["parents"], np.int32) if self.info.get("parents") else None

    @property
    def described(self) -> str:
        """What the distances are of, in a few words."""
        if scores := self.info.get("scores"):
            return f"scores {scores['name']}"
        return f"K {self.info['k']:,}, {self.info['features']} features"

    def save(self, folder: str | os.PathLike) -> None:
        """Write the set's files to `folder`. Not atomic: write to a temporary folder and rename it when complete."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        table = pa.record_batch([pa.array(getattr(self, name)) for name in _COLUMNS], names=_COLUMNS)
        with open(folder / "train.arrow", "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_batch(table)
        np.save(folder / "centroids.npy", self.centroids, allow_pickle=False)
        info = {**self.info, "xxh128": {name: _digest(folder / name) for name in _ARRAYS}}
        (folder / "prototypes.json").write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike,
        index_fingerprint: str | None,
        check_once: CheckOnce = check_always,
        build: str | None = None,
    ) -> PrototypeSet:
        """Load the set in `folder`, with memory-mapped arrays.

        Raises PrototypeError if it is missing, damaged, or made for another index than `index_fingerprint`; None
        accepts any index. `check_once` may skip reading all of the files if they were checked before. `build` is the
        command that errors suggest, if any.
        """
        folder, advice = Path(folder), f"run `{build} --overwrite`" if build else "build the set again"
        if not (folder / "prototypes.json").is_file():
            raise PrototypeError(f"no prototypes in {folder}; {f'run `{build}`' if build else 'build them first'}")
        try:
            info = json.loads((folder / "prototypes.json").read_text(encoding="utf-8"))
            if "scores" in info:  # which the command would not bring back
                advice = "make the set again from scores of these images"
            if info["format"] != FORMAT:
                raise PrototypeError(f"{folder} has format {info['format']!r}, this version reads {FORMAT!r}; {advice}")
            if (made_for := info["index_fingerprint"]) != index_fingerprint and index_fingerprint is not None:
                raise PrototypeError(f"{folder} was made for index {made_for}, not {index_fingerprint}; {advice}")
            digests = info.pop("xxh128")
            with ExitStack() as opened:
                files = [opened.enter_context(_open(folder / name)) for name in _ARRAYS]
                mapped = [pa.py_buffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) for file in files]
                check_once(files, json.dumps([_CHECK_VERSION, digests]), lambda: _check(mapped, digests))
            arrays = _arrays(*mapped)
            _check_info(info, len(arrays["centroids"]))
        except PrototypeError:
            raise
        except Exception as error:  # the libraries raise many kinds for damaged files
            if isinstance(error, OSError) and error.errno:  # of the disk or the process, not of the content
                raise PrototypeError(f"{folder} cannot be read ({error.strerror})") from error
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise PrototypeError(f"{folder} is damaged ({reason}); {advice}") from error
        return cls(**arrays, info=info)


def build_prototypes(
    parts: Sequence[Features],
    k: int | None,
    seed: int,
    *,
    features_name: str,
    features_reason: str,
    index_fingerprint: str,
    sample: int = SAMPLE,
    iterations: int = ITERATIONS,
    min_cluster: int = 3,
    singletons: Singletons = "far",
) -> PrototypeSet:
    """Build a prototype set from features in parts, each float32 (n, D), in the row order of the index.

    `k` None chooses K; the texts are only recorded. Raises ValueError for fewer than k images, and if all distances are
    equal.
    """
    clusters = make_clusters(parts, k, seed, sample, iterations)
    cluster, raw = (np.concatenate(column) for column in zip(*map(clusters.assign, parts), strict=True))
    distance = normalise_distances(raw, cluster, len(clusters.centroids), min_cluster, singletons)
    about = {
        "features": features_name,
        "features_reason": features_reason,
        "seed": seed,
        "sample": sample,
        "iterations": iterations,
        "singletons": singletons,
        "min_cluster": min_cluster,
        "index_fingerprint": index_fingerprint,
    }
    return PrototypeSet(cluster, raw, distance, clusters.centroids, make_info(clusters, cluster, about))


def make_info(clusters: Clusters, cluster: NDArray[np.int32], about: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `info` of a set with these assignments (N,); `about` holds the settings it was built with."""
    sizes = cluster_sizes(cluster, len(clusters.centroids)).tolist()
    return {
        "format": FORMAT,
        **about,
        "k": len(clusters.centroids),
        "normalisation": "features: standardised, unit length; distance: min-max inside the cluster",
        "davies_bouldin": [list(score) for score in clusters.scores] if clusters.scores else None,
        "cluster_sizes": [min(sizes), max(sizes)],
        "samples": len(cluster),
    }


def cluster_sizes(cluster: NDArray[np.int32], k: int) -> NDArray[np.int64]:
    """Return the number of samples (k,) in each cluster, given the cluster of each sample, -1 for none."""
    return np.bincount(cluster[cluster >= 0] if cluster.min() < 0 else cluster, minlength=k)


def _arrays(centroids: pa.Buffer, train: pa.Buffer) -> dict[str, NDArray]:
    """Return columns and centroids as views of their files."""
    stream = pa.BufferReader(centroids)
    np.lib.format.read_magic(stream)
    shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    placed = np.frombuffer(centroids, dtype, math.prod(shape), stream.tell()).reshape(shape)
    table = pa.ipc.open_file(train).get_batch(0)
    table.validate()  # the extent of each column, which Arrow does not check by itself
    return {name: table[name].to_numpy(zero_copy_only=True) for name in _COLUMNS} | {"centroids": placed}


def _check(mapped: list[pa.Buffer], digests: dict[str, str]) -> None:
    """Read and check a whole set. Raises ValueError, or what Arrow and numpy raise, if it is damaged."""
    if digests != {name: xxhash.xxh128_hexdigest(buffer) for name, buffer in zip(_ARRAYS, mapped, strict=True)}:
        raise ValueError("checksum mismatch")
    _check_arrays(**_arrays(*mapped))


def _check_arrays(cluster: NDArray, raw_distance: NDArray, distance: NDArray, centroids: NDArray) -> None:
    """Raise ValueError for arrays that `build_prototypes` never makes."""
    kinds = [(array.dtype.str, array.ndim) for array in (cluster, raw_distance, distance, centroids)]
    if kinds != [("<i4", 1), ("<f4", 1), ("<f4", 1), ("<f4", 2)]:
        raise ValueError(f"unexpected dtypes or dimensions {kinds}")
    if not (cluster.min() >= -1 and cluster.max() < len(centroids)):
        raise ValueError("a cluster has no centroid")
    if (distance[cluster < 0] != 1).any():
        raise ValueError("a sample in no cluster is not at distance 1")
    if not (distance.min() >= 0 and distance.max() <= 1):  # false for NaN as well
        raise ValueError("a distance is not between 0 and 1")


def _check_info(info: Mapping[str, Any], clusters: int) -> None:
    """Check what no digest covers. Raises ValueError or KeyError if it is not as it was written."""
    if (parents := info.get("parents")) is not None:
        is_list = isinstance(parents, list) and len(parents) == clusters
        if not is_list or not all(type(group) is int and 0 <= group < clusters for group in parents):
            raise ValueError("parents are not a group for each cluster")
    if "scores" in info:
        scores = info["scores"]
        kinds = {"name": str, "lowest": float, "highest": float}
        if not isinstance(scores, dict) or any(type(scores[name]) is not kind for name, kind in kinds.items()):
            raise ValueError("scores have no name or range")
    elif not isinstance(info.get("features"), str):
        raise ValueError("features have no name")


def _open(path: Path) -> BinaryIO:
    if not path.is_file():  # opening a pipe would block
        raise ValueError(f"{path.name} is missing or not a regular file")
    return open(path, "rb")


def _digest(path: Path) -> str:
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        return xxhash.xxh128_hexdigest(mapped)
