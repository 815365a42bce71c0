"""Describe a packed data set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mimcl.cli.console import first_few, format_bytes
from mimcl.cli.data.prototype_sets import prototype_set_folders
from mimcl.cli.suggest import prototypes_build
from mimcl.curriculum.prototypes import PrototypeError, PrototypeSet
from mimcl.pipeline.dataset_json import read_dataset
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.remote.urls import shown, url_of


@dataclass(frozen=True)
class SplitDescription:
    """One split: class sizes in images, image sizes in bytes and pixels."""

    split: str
    images: int
    unlabelled: int
    classes: list[str]
    class_sizes: tuple[int, float, int] | None  # smallest, median, largest
    shards: int
    bytes: int  # of the shards
    image_bytes: tuple[int, float, int]  # smallest, median, largest
    median_pixels: tuple[float, float]  # width, height
    largest_pixels: tuple[int, int]
    fingerprint: str

    def lines(self) -> list[tuple[str, str]]:
        labels = "no labels"
        if self.class_sizes:
            (low, median, high), names = self.class_sizes, first_few(self.classes)
            labels = f"{len(self.classes):,}, with {low:,} to {high:,} images, median {median:,g}: {names}"
        elif self.classes:
            labels = f"{len(self.classes):,}, but no image has a label"
        if self.classes and self.unlabelled:
            labels += f"; {self.unlabelled:,} images without a label"
        (low, median, high), (width, height) = self.image_bytes, self.median_pixels
        return [
            (self.split, f"{self.images:,} images"),
            ("  classes", labels),
            ("  shards", f"{self.shards:,}, {format_bytes(self.bytes)}"),
            ("  image bytes", f"{format_bytes(low)} to {format_bytes(high)}, median {format_bytes(median)}"),
            ("  pixels", "median {:g} x {:g}, largest {:,} x {:,}".format(width, height, *self.largest_pixels)),
            ("  fingerprint", self.fingerprint),
        ]


@dataclass(frozen=True)
class PrototypesStatus:
    """A set of prototypes of these shards; `fault` says why it cannot be used with them."""

    name: str
    k: int | None
    features: str | None  # None for a set of scores
    described: str  # what its distances are of
    fault: str | None


@dataclass(frozen=True)
class ShardsDescription:
    """A packed data set and its sets of prototypes."""

    path: str  # folder or URL without credentials
    splits: list[SplitDescription]
    packed: dict[str, Any]  # how it was packed, from dataset.json
    prototypes: list[PrototypesStatus] | None  # None for remote shards

    def lines(self) -> list[tuple[str, str]]:
        lines = [("shards", self.path)]
        for split in self.splits:
            lines += split.lines()
        packed = self.packed
        if packed.get("adopted"):
            how = ["adopted in place, written by another program"]
        else:
            how = [f"shards of {packed.get('shard_mb')} MB"]
            side = packed.get("short_side")
            how.append(f"larger images shrunk to a short side of {side}" if side else "image bytes unchanged")
        how.append("every image decoded" if packed.get("every_image_decoded") else "headers checked")
        lines.append(("packed", ", ".join(how)))
        rejected, duplicates = packed.get("rejected", 0), packed.get("duplicates", 0)
        skipped = [f"{rejected:,} files" + (", listed in rejected.jsonl" if rejected else "")]
        if duplicates:
            skipped.append(f"{duplicates:,} exact duplicates, listed in duplicates.jsonl")
        lines.append(("skipped", "; ".join(skipped)))
        for found in self.prototypes or ():
            what = found.fault or f"{found.described}, matches the train split"
            lines.append(("prototypes", f"{found.name}: {what}"))
        if self.prototypes is None:
            lines.append(("prototypes", "remote; training downloads the set that it needs"))
        elif not self.prototypes:
            lines.append(("prototypes", f"none; build them with `{prototypes_build(self.path)}`"))
        return lines


def describe_shards(path: str | Path) -> ShardsDescription:
    """Read a data set's description and indices. Raises DataError if they are damaged."""
    description = read_dataset(path)
    splits = [_split(ShardIndex.load(path, split)) for split in description["splits"]]
    packed = description.get("packed")
    train = description["splits"].get("train")
    sets = None
    if url_of(path) is None:
        fingerprint = train["fingerprint"] if train else ""
        sets = [_prototypes_status(folder, fingerprint) for folder in prototype_set_folders(Path(path))]
    return ShardsDescription(shown(path), splits, packed if isinstance(packed, dict) else {}, sets)


def _split(index: ShardIndex) -> SplitDescription:
    known = index.label[index.label >= 0]
    sizes = np.bincount(known, minlength=len(index.classes))
    place = (index.width.astype(np.int64) * index.height).argmax() if index.samples else None
    return SplitDescription(
        split=index.split,
        images=index.samples,
        unlabelled=index.samples - len(known),
        classes=index.classes,
        class_sizes=_min_median_max(sizes) if len(known) else None,
        shards=len(index.shards),
        bytes=sum(shard["bytes"] for shard in index.shards),
        image_bytes=_min_median_max(index.nbytes),
        median_pixels=(0.0, 0.0) if place is None else (float(np.median(index.width)), float(np.median(index.height))),
        largest_pixels=(0, 0) if place is None else (int(index.width[place]), int(index.height[place])),
        fingerprint=index.fingerprint,
    )


def _min_median_max(values: np.ndarray) -> tuple[int, float, int]:
    return (int(values.min()), float(np.median(values)), int(values.max())) if len(values) else (0, 0.0, 0)


def _prototypes_status(folder: Path, fingerprint: str) -> PrototypesStatus:
    try:
        build = prototypes_build(folder.parents[1], folder.name)
        found = PrototypeSet.load(folder, fingerprint, build=build)
    except PrototypeError as error:
        return PrototypesStatus(folder.name, None, None, "", str(error))
    return PrototypesStatus(folder.name, found.info["k"], found.info.get("features"), found.described, None)
