"""Load the labelled images that an encoder is evaluated on."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mimcl.pipeline.dataset_json import read_dataset
from mimcl.pipeline.files import DataError
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.remote.urls import shown


class LabelledSplits(NamedTuple):
    """The train and val split of a data set; images with label -1 are ignored in both."""

    train: ShardIndex
    val: ShardIndex
    classes: int  # number of classes with train images

    @classmethod
    def load(cls, data: str | Path) -> LabelledSplits:
        """Raises DataError unless there is a val split, both splits have labels, and train has at least two classes."""
        if "val" not in read_dataset(data)["splits"]:
            raise _unusable(f"{shown(data)} has no val split to evaluate on")
        train, val = ShardIndex.load(data), ShardIndex.load(data, "val")
        for index in (train, val):
            if not (index.label >= 0).any():
                raise _unusable(f"the {index.split} images of {shown(data)} have no labels")
        labels = np.unique(train.label[train.label >= 0])
        if len(labels) == 1:
            raise _unusable(f"all train images of {shown(data)} have the same class, {train.classes[labels[0]]}")
        return cls(train, val, len(labels))

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
        """The number of labelled train images and of labelled val images."""
        return int(np.count_nonzero(self.train.label >= 0)), int(np.count_nonzero(self.val.label >= 0))


def _unusable(what: str) -> DataError:
    return DataError(
        f"{what}; pack a folder of class folders: mimcl shard SRC --holdout 0.1 --out FOLDER, then give --data FOLDER"
    )
