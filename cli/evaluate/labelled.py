"""The labelled images that an encoder is judged on."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mimcl.pipeline.dataset_json import read_dataset
from mimcl.pipeline.files import DataError
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.remote.urls import shown


class Labelled(NamedTuple):
    """Both splits; images with label -1 do not count in either."""

    train: ShardIndex
    val: ShardIndex
    classes: int  # among the train images

    @classmethod
    def load(cls, data: str | Path) -> Labelled:
        """Raises DataError unless there is a val split, both have labels, and train has two classes or more."""
        if "val" not in read_dataset(data)["splits"]:
            raise _unusable(f"{shown(data)} has no val split to judge by")
        splits = ShardIndex.load(data), ShardIndex.load(data, "val")
        for index in splits:
            if not (index.label >= 0).any():
                raise _unusable(f"the {index.split} images of {shown(data)} have no labels")
        train = splits[0]
        known = np.unique(train.label[train.label >= 0])
        if len(known) == 1:
            raise _unusable(f"the train images of {shown(data)} are all of one class, {train.classes[known[0]]}")
        return cls(*splits, len(known))

    @property
    def sizes(self) -> NDArray[np.int64]:
        """How many train images each of the classes has."""
        return np.unique(self.train.label[self.train.label >= 0], return_counts=True)[1]

    @property
    def most(self) -> int:
        """How many train images the largest class has."""
        return int(self.sizes.max())

    @property
    def counts(self) -> tuple[int, int]:
        """How many images of train and val have a label."""
        return tuple(int(np.count_nonzero(index.label >= 0)) for index in (self.train, self.val))


def _unusable(what: str) -> DataError:
    return DataError(
        f"{what}; pack a folder that has a folder for each class, with a val split: mimcl shard SRC --holdout 0.1 "
        "--out FOLDER, then give --data FOLDER"
    )
