"""Nearest neighbours as a measure of the model in training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mimcl.cli.console import console
from mimcl.cli.encoders.bad_images import is_bad
from mimcl.cli.evaluate.cached_features import Source
from mimcl.cli.evaluate.labelled import UNSEEN, LabelledSplits, of_seen_classes
from mimcl.model.evaluate.knn import knn
from mimcl.model.world import World
from mimcl.pipeline.files import DataError

_MOST = 50_000  # images of a split, spread evenly over it: enough of ImageNet to follow a run
_K = 20


class OnlineKnn:
    """nn and knn on central crops of labelled images: a `Measure`."""

    name = "online_knn"

    def __init__(self, data: str | Path, device: torch.device, world: World) -> None:
        """Rank 0 prints which val images are skipped. Raises DataError where LabelledSplits does."""
        try:
            splits = LabelledSplits.load(data)
        except DataError as error:
            raise DataError(f"{error}, or leave out --online-knn") from None
        if splits.note and world.rank == 0:
            console.print(splits.note)
        train = _chosen(splits.train.label)
        known = of_seen_classes(splits.val_labels, splits.train.label[train])  # those chosen may lack a small class
        val = _chosen(known)
        self.sources = Source(splits.train, train), Source(splits.val, val)
        self._labels, self._device = (splits.train.label[train], known[val]), device
        unseen = int(np.count_nonzero(splits.val.label != known))
        self.settings = {"val": len(val), UNSEEN: unseen} if unseen else {}

    def __call__(self, features: Sequence[NDArray[np.float32]]) -> dict[str, float]:
        """Return the shares, 0 to 1, of val images given their own class, by "nn" and "knn"."""
        bank, queries = features
        good = [~is_bad(of) for of in features]
        if not all(np.isfinite(of[known]).all() for of, known in zip(features, good, strict=True)):
            return {}
        labels, truth = (np.where(known, of, -1) for of, known in zip(self._labels, good, strict=True))
        with torch.inference_mode():
            return dict(knn(bank, labels, queries, truth, _K, device=self._device))


def _chosen(labels: NDArray[np.int32]) -> NDArray[np.int64]:
    known = np.flatnonzero(labels >= 0)
    return known[:: math.ceil(len(known) / _MOST) or 1]
