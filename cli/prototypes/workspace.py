"""Intermediate results of a prototype build, in `prototypes/.NAME.building`, from which it is resumed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Protocol, overload

import numpy as np
import safetensors.torch
import xxhash
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor, from_numpy

from mimcl.cli.console import console
from mimcl.cli.encoders.bad_images import is_bad
from mimcl.cli.encoders.feature_store import ChunkedArray
from mimcl.curriculum.clustering import Clusters, Standardiser, make_clusters
from mimcl.model.digest import weights_digest
from mimcl.pipeline.files import DataError, atomic_file, open_regular, remedy, write_json
from mimcl.pipeline.index import ShardIndex

MAX_PART_ROWS = 16_384  # 25 MB of DINO ViT-S features
_ASSIGNED = np.dtype([("cluster", "<i4"), ("raw_distance", "<f4")])
_SETTINGS, _CLUSTERING, _CONSTANTS, _PLACES = "settings.json", "clustering.json", "constants", "clustering"


def parts_of(index: ShardIndex) -> list[range]:
    """Return the rows of each shard, in parts of at most MAX_PART_ROWS."""
    bounds = np.searchsorted(index.shard, np.arange(len(index.shards) + 1)).tolist()
    return [
        range(first, min(first + MAX_PART_ROWS, stop))
        for start, stop in pairwise(bounds)
        for first in range(start, stop, MAX_PART_ROWS)
    ]


class Extractor(Protocol):
    """What a build needs of a `FeatureExtractor` or a `ReconstructionLoss`, besides calling it."""

    image_size: int
    fit_images: int
    precision: Literal["float32", "bfloat16"]

    def fit(self, images: Tensor) -> None: ...
    def constants(self) -> dict[str, Tensor]: ...
    def restore(self, constants: dict[str, Tensor]) -> None: ...


class BuildFolder:
    """A file of features and one of assignments for each part, the settings of the features, and the centroids.

    Files are written atomically. Results made with other settings are discarded. The folder is shared by all processes
    of a build; rank 0 writes what is common to all parts.
    """

    def __init__(self, folder: Path, index: ShardIndex) -> None:
        self.folder = folder
        self.features = ChunkedArray(folder / "features", parts_of(index), np.float32)
        self.assigned = ChunkedArray(folder / "assigned", self.features.chunks, _ASSIGNED, ())

    def start(self, settings: dict[str, Any], extractor: Extractor, images: Callable[[], Tensor]) -> None:
        """Resume with features made with these settings and weights, or start anew, fitting on `images()`."""
        known = _read_json(self.folder / _SETTINGS)
        if known == settings | {_CONSTANTS: self._constants(known, extractor)}:
            done = sum(1 for _ in self.features.folder.glob("[0-9]*.npy"))
            console.print(f"resuming in {self.folder}/: {done} of {len(self.features.chunks)} parts have features")
            return
        if self.folder.exists():
            if known:
                console.print(f"{self.folder}/ was made with other images or features: starting over")
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True)
        if extractor.fit_images:
            extractor.fit(images())
        constants = extractor.constants()
        if extractor.fit_images:
            _write_tensors(self.folder / _CONSTANTS, constants)
        write_json(self.folder / _SETTINGS, settings | {_CONSTANTS: weights_digest(constants)})

    def load_constants(self, extractor: Extractor) -> str:
        """Load the constants that rank 0 learned; return a digest of all that the features depend on."""
        known = _read_json(self.folder / _SETTINGS)
        found = self._constants(known, extractor)
        if not known or found != known[_CONSTANTS]:
            raise DataError(
                f"{self.folder} does not match what rank 0 started, or the weights differ; give all processes the same "
                "command, weights and folder of shards"
            )
        return xxhash.xxh128_hexdigest(json.dumps(known, sort_keys=True).encode())

    def compute_clusters(self, settings: dict[str, Any]) -> None:
        """Compute the centroids unless they exist. Raises ValueError, DataError."""
        if self._known_clusters(settings) is not None:
            return
        shutil.rmtree(self.assigned.folder, ignore_errors=True)  # assigned to other centroids
        made = make_clusters(
            self.all_features(), settings["k"], *(settings[n] for n in ("seed", "sample", "iterations"))
        )
        arrays = {"mean": made.standardiser.mean, "std": made.standardiser.std, "centroids": made.centroids}
        tensors = {name: from_numpy(array) for name, array in arrays.items()}
        _write_tensors(self.folder / _PLACES, tensors)
        digest = weights_digest(tensors)
        write_json(self.folder / _CLUSTERING, {"settings": settings, "scores": made.scores, "digest": digest})

    def read_clusters(self, settings: dict[str, Any]) -> Clusters:
        """Read the centroids. Raises DataError if they are missing."""
        if (found := self._known_clusters(settings)) is None:
            raise DataError(f"{self.folder / _CLUSTERING} cannot be read; give all processes the same folder of shards")
        return found

    def assign(self, clusters: Clusters, parts: range) -> None:
        """Assign the samples of those parts that are not assigned yet."""
        for part in parts:
            if self.assigned.read(part) is None:
                features = _require(self.features, part)
                good = ~is_bad(features)
                rows = np.empty(len(features), _ASSIGNED)
                rows["cluster"], rows["raw_distance"] = -1, np.nan  # of bad images
                rows["cluster"][good], rows["raw_distance"][good] = clusters.assign(features[good])
                self.assigned.write(part, rows)

    def columns(self) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.float32]]:
        """Return cluster, raw_distance and zeros for the distance of all samples, (N,) each, memory-mapped.

        Raises OSError if the disk is full.
        """
        paths = [self.folder / f"{name}.column" for name in ("cluster", "raw_distance", "distance")]
        # Written before they are mapped: a write to mapped memory kills the process if the disk is full.
        with ExitStack() as stack:
            files = [stack.enter_context(open(path, "wb")) for path in paths]
            for part in range(len(self.assigned.chunks)):
                found = _require(self.assigned, part)
                columns = found["cluster"], found["raw_distance"], np.zeros(len(found), np.float32)
                for file, column in zip(files, columns, strict=True):
                    file.write(column.tobytes())
        cluster, raw_distance, distance = paths
        return (
            np.memmap(cluster, np.int32, "r+"),
            np.memmap(raw_distance, np.float32, "r+"),
            np.memmap(distance, np.float32, "r+"),
        )

    def remove(self) -> None:
        """Remove the folder, once the set is stored."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def bad_images(self) -> NDArray[np.bool_]:
        """Return which samples (N,) are bad and have no features."""
        return np.concatenate([is_bad(_require(self.features, part)) for part in range(len(self.features.chunks))])

    def all_features(self) -> Sequence[NDArray[np.float32]]:
        """Return the features of every part, memory-mapped, without those of bad images."""
        return _GoodFeatures([_require(self.features, part) for part in range(len(self.features.chunks))])

    def _constants(self, known: dict[str, Any], extractor: Extractor) -> str | None:
        """Restore the extractor's learned constants; return the digest of all its constants, None if missing."""
        if extractor.fit_images:
            learned = _read_tensors(self.folder / _CONSTANTS)
            if learned is None or weights_digest(learned) != known.get(_CONSTANTS):
                return None
            extractor.restore(learned)
        return weights_digest(extractor.constants())

    def _known_clusters(self, settings: dict[str, Any]) -> Clusters | None:
        known, tensors = _read_json(self.folder / _CLUSTERING), _read_tensors(self.folder / _PLACES)
        if tensors is None or known.get("settings") != settings or known.get("digest") != weights_digest(tensors):
            return None
        scores = known["scores"] and [(k, index) for k, index in known["scores"]]
        mean, std, centroids = (tensors[name].numpy() for name in ("mean", "std", "centroids"))
        return Clusters(Standardiser(mean, std), centroids, scores)


class _GoodFeatures(Sequence[NDArray[np.float32]]):
    """Parts of features without the rows of bad images; a part that has any is copied, each time it is needed."""

    def __init__(self, parts: list[NDArray[np.float32]]) -> None:
        self._parts, self._bad = parts, [np.flatnonzero(is_bad(part)) for part in parts]

    def __len__(self) -> int:
        return len(self._parts)

    @overload
    def __getitem__(self, place: int) -> NDArray[np.float32]: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[NDArray[np.float32]]: ...
    def __getitem__(self, place: int | slice) -> NDArray[np.float32] | Sequence[NDArray[np.float32]]:
        if isinstance(place, slice):
            return [self[number] for number in range(len(self))[place]]
        part, bad = self._parts[place], self._bad[place]
        return np.delete(part, bad, axis=0) if len(bad) else part


def _require(store: ChunkedArray, part: int) -> NDArray:
    if (rows := store.read(part)) is None:
        raise DataError(
            f"part {part} of {store.folder} is missing or damaged; give all processes the same folder of shards, and "
            "run the same command again"
        )
    return rows


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(_content(path) or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    with atomic_file(path.with_suffix(".safetensors")) as file:
        file.write(safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()}))


def _read_tensors(path: Path) -> dict[str, Tensor] | None:
    if (content := _content(path.with_suffix(".safetensors"))) is None:
        return None
    try:
        return safetensors.torch.load(content)
    except SafetensorError:
        return None


def _content(path: Path) -> bytes | None:
    """Return what a file contains, None if there is no file. Raises DataError if it cannot be read."""
    try:
        with open_regular(path) as file:
            return file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        advice = remedy(error, f"remove {path.parent} to start over")
        raise DataError(f"{path} cannot be read ({error.strerror or error}); {advice}") from None
