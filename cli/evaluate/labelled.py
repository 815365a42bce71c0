"""Load the labelled images that an encoder is evaluated on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mimcl.cli.suggest import command
from mimcl.pipeline.dataset_json import read_dataset
from mimcl.pipeline.files import DataError
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.remote.urls import shown, url_of

UNSEEN = "val_of_unseen_classes"  # among an evaluation's settings: the number of val images skipped for that
_NAMES_IN_NOTE = 5


class LabelledSplits(NamedTuple):
    """The train and val split of a data set; images with label -1 are ignored in both.

    `val_labels` (M,) are -1 also for images of a class that train does not have: they say nothing about an encoder.
    """

    train: ShardIndex
    val: ShardIndex
    val_labels: NDArray[np.int32]
    classes: int  # number of classes with train images

    @classmethod
    def load(cls, data: str | Path) -> LabelledSplits:
        """Load both splits.

        Raises DataError unless there is a val split, both splits have labels, train has at least two classes, and val
        has one of them.
        """
        if "val" not in read_dataset(data)["splits"]:
            raise _unusable(f"{shown(data)} has no val split to evaluate on")
        train, val = ShardIndex.load(data), ShardIndex.load(data, "val")
        for index in (train, val):
            if not (index.label >= 0).any():
                raise _unusable(f"the {index.split} images of {shown(data)} have no labels")
        labels = np.unique(train.label[train.label >= 0])
        if len(labels) == 1:
            raise _unusable(f"all train images of {shown(data)} have the same class, {train.classes[labels[0]]}")
        val_labels = of_seen_classes(val.label, train.label)
        if not (val_labels >= 0).any():
            raise _unusable(f"no val image of {shown(data)} has a class that train has (val: {_names(val, val.label)})")
        return cls(train, val, val_labels, len(labels))

    @property
    def class_sizes(self) -> NDArray[np.int64]:
        """The number of train images of each class."""
        return np.unique(self.train.label[self.train.label >= 0], return_counts=True)[1]

    @property
    def largest_class(self) -> int:
        """The number of train images of the largest class."""
        return int(self.class_sizes.max())

    @property
    def counts(self) -> tuple[int, int]:
        """The number of labelled train images, and of val images that have one of their classes."""
        return int(np.count_nonzero(self.train.label >= 0)), int(np.count_nonzero(self.val_labels >= 0))

    @property
    def unseen(self) -> int:
        """The number of val images skipped since train does not have their class."""
        return int(np.count_nonzero(self.val.label != self.val_labels))

    @property
    def note(self) -> str:
        """What is skipped, one line; empty if nothing is."""
        if not self.unseen:
            return ""
        classes = _names(self.val, self.val.label[self.val.label != self.val_labels])
        total = self.unseen + self.counts[1]
        return f"skipped: {self.unseen:,} of {total:,} val images, of classes without train images: {classes}"


def of_seen_classes(labels: NDArray[np.int32], train_labels: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return labels (M,) with -1 where no train image (N,) has that label; a negative label is none."""
    return np.where(np.isin(labels, train_labels), labels, np.int32(-1))


def _names(index: ShardIndex, labels: NDArray[np.int32]) -> str:
    """Name the classes of these labels, at most five, with their number if there are more."""
    found: Sequence[int] = np.unique(labels[labels >= 0]).tolist()
    names = ", ".join(f"{index.classes[label]:.80}" for label in found[:_NAMES_IN_NOTE])
    return names + (f", ... ({len(found):,} classes)" if len(found) > _NAMES_IN_NOTE else "")


def require_neighbours(splits: LabelledSplits, k: int) -> None:
    """Raise DataError unless `k` labelled train images can vote."""
    if k > splits.counts[0]:
        raise DataError(f"--k {k} is more than the {splits.counts[0]:,} labelled train images; give a smaller --k")


def require_shots(splits: LabelledSplits, shots: Iterable[int]) -> None:
    """Raise DataError if no class has as many train images as the largest of `shots`."""
    if (most := max(shots)) > splits.largest_class:
        raise DataError(
            f"--shots {most} is more than the {splits.largest_class} train images of the largest class of "
            f"{splits.train.shown}; give fewer"
        )


def can_be_evaluated(data: str | Path) -> bool:
    """Whether there are local shards in `data` with a train and a val split and classes."""
    try:
        splits = {} if url_of(data) else read_dataset(data)["splits"]
    except DataError:
        return False
    return all(splits.get(split, {}).get("classes") for split in ("train", "val"))


def _unusable(what: str) -> DataError:
    pack = command("shard", "SRC", holdout=0.1, out="FOLDER")
    return DataError(f"{what}; pack a folder of class folders with `{pack}`, then give --data FOLDER")
