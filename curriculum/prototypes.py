"""Prototype sets: each sample's distance to its own prototype (see `clustering.py`), as they are stored."""

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
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from mimcl.curriculum.clustering import (
    ITERATIONS,
    SAMPLE,
    Clusters,
    Features,
    Singletons,
    make_clusters,
    normalise_distances,
)

FORMAT = "mimcl-prototypes/1"
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
    """From features in parts, each float32 (n, D), together rows as in the index, to prototypes.

    `k` None chooses it; the texts are only recorded. ValueError if there are no k clusters or all distances are equal.
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
    return PrototypeSet(cluster, raw, distance, clusters.centroids, described(clusters, cluster, about))


def described(clusters: Clusters, cluster: NDArray[np.int32], about: Mapping[str, Any]) -> dict[str, Any]:
    """The info of a set with these assignments (N,); `about` has what it depends on."""
    sizes = np.bincount(cluster, minlength=len(clusters.centroids)).tolist()
    return {
        "format": FORMAT,
        **about,
        "k": len(clusters.centroids),
        "normalisation": "features: standardised, unit length; distance: min-max inside the cluster",
        "davies_bouldin": [list(score) for score in clusters.scores] if clusters.scores else None,
        "cluster_sizes": [min(sizes), max(sizes)],
        "samples": len(cluster),
    }


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
