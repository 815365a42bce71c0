"""Describe a set of prototypes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mimcl.curriculum.prototypes import PrototypeSet, cluster_sizes
from mimcl.pipeline.dataset_json import read_dataset
from mimcl.pipeline.files import DataError

_QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)


@dataclass(frozen=True)
class PrototypesDescription:
    """How a set of prototypes was made, its cluster sizes, and the distances of the images.

    For a set of `scores`, what describes features is None.
    """

    path: Path
    k: int
    samples: int
    scores: dict[str, Any] | None  # of a set without features: name, lowest, highest, and where they are from
    features: str | None
    features_reason: str
    precision: str  # of the features: float32 or bfloat16
    seed: int | None
    min_cluster: int  # the members of smaller clusters all get the distance that `singletons` names
    singletons: str  # far or near
    group_sizes: tuple[int, int] | None  # clusters in the smallest and the largest group of the upper level, if any
    cluster_sizes: tuple[int, float, int]  # smallest, median, largest
    davies_bouldin: list[tuple[int, float]] | None  # (K, index) of each K tried; None if K was given
    distance_quantiles: dict[float, float]
    nearest: float  # share of the images at distance 0
    farthest: float  # share at distance 1
    bad: int  # images without features, in no cluster and at distance 1
    index_fingerprint: str
    origin: dict[str, str] | None  # index_fingerprint and name of the set that repack copied
    shards: Path  # the folder two levels up
    fits: bool | None  # whether it was made for their train split; None without shards

    def lines(self) -> list[tuple[str, str]]:
        low, median, high = self.cluster_sizes
        quantiles = "  ".join(f"{100 * q:g} %: {value:.3f}" for q, value in self.distance_quantiles.items())
        fits = {
            True: f"matches the train split in {self.shards}",
            False: f"does not match the train split in {self.shards}: build the prototypes again",
            None: f"no shards in {self.shards} to compare with",
        }[self.fits]
        copied = []
        if self.origin:
            was = "set {name} of index {index_fingerprint}; distances copied when it was repacked"
            copied = [("origin", was.format(**self.origin))]
        return [
            ("prototypes", str(self.path)),
            ("K", f"{self.k:,} for {self.samples:,} images"),
            *self._source(),
            ("clusters", f"{low:,} to {high:,} images, median {median:,g}"),
            *self._levels(),
            ("distance quantiles", quantiles),
            ("at distance 0 / 1", f"{self.nearest:.1%} / {self.farthest:.1%} of the images"),
            *([("bad images", f"{self.bad:,}, in no cluster, at distance 1")] if self.bad else []),
            *self._small_clusters(),
            ("made for index", f"{self.index_fingerprint}, {fits}"),
            *copied,
        ]

    def _source(self) -> list[tuple[str, str]]:
        if self.scores is None:
            return [("features", f"{self.features} ({self.features_reason}), {self.precision}, seed {self.seed}")]
        others = [f"{name} {value}" for name, value in self.scores.items() if name not in ("name", "lowest", "highest")]
        values = f"{self.scores['lowest']:.6g} to {self.scores['highest']:.6g}"
        return [("scores", ", ".join([f"{self.scores['name']}: {values}", *others]))]

    def _levels(self) -> list[tuple[str, str]]:
        lines = []
        if self.group_sizes:
            lines.append(("groups of clusters", "{:,} to {:,} clusters".format(*self.group_sizes)))
        if self.scores is None:
            tried = "  ".join(f"K {k}: {index:.3f}" for k, index in self.davies_bouldin or ())
            lines.append(("Davies-Bouldin", tried or "K was given"))
        return lines

    def _small_clusters(self) -> list[tuple[str, str]]:
        if self.scores is not None:
            return []
        return [("small clusters", f"fewer than {self.min_cluster} images: all count as {self.singletons}")]


def describe_prototypes(path: Path) -> PrototypesDescription:
    """Read a set of prototypes. Raises PrototypeError if it is damaged or has another format."""
    found = PrototypeSet.load(path, None)
    info, sizes = found.info, cluster_sizes(found.cluster, len(found.centroids))
    shards = path.resolve().parent.parent
    try:
        train = read_dataset(shards)["splits"].get("train", {})
        fits = train.get("fingerprint") == info["index_fingerprint"]
    except DataError:
        fits = None
    tried = info.get("davies_bouldin")
    groups = None if found.parents is None else np.bincount(found.parents)
    return PrototypesDescription(
        path=path,
        k=len(found.centroids),
        samples=len(found.distance),
        scores=info.get("scores"),
        features=info.get("features"),
        features_reason=info.get("features_reason", "unknown reason"),
        precision=info.get("precision", "unknown precision"),
        seed=info.get("seed"),
        min_cluster=info.get("min_cluster", 1),
        singletons=info.get("singletons", "far"),
        group_sizes=None if groups is None else (int(groups.min()), int(groups.max())),
        cluster_sizes=(int(sizes.min()), float(np.median(sizes)), int(sizes.max())),
        davies_bouldin=[(k, index) for k, index in tried] if tried else None,
        distance_quantiles=dict(zip(_QUANTILES, np.quantile(found.distance, _QUANTILES).tolist(), strict=True)),
        nearest=float((found.distance == 0).mean()),
        farthest=float((found.distance == 1).mean()),
        bad=int((found.cluster < 0).sum()),
        index_fingerprint=info["index_fingerprint"],
        origin=_origin(info),
        shards=shards,
        fits=fits,
    )


def _origin(info: dict[str, Any]) -> dict[str, str] | None:
    """Return the origin, or None if there is none or it was not written by mimcl."""
    origin = info.get("origin")
    known = isinstance(origin, dict) and all(type(origin.get(name)) is str for name in ("index_fingerprint", "name"))
    return origin if known else None
