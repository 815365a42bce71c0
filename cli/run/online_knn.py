"""Nearest neighbours while a run goes: how good the features are that the model has by then."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from mimcl.cli.encoders.mae_features import MaeFeatures
from mimcl.cli.encoders.split_features import extract, open_decoder
from mimcl.cli.evaluate.labelled import LabelledSplits
from mimcl.model.distributed import World
from mimcl.model.evaluate.knn import knn
from mimcl.model.mae import MaskedAutoencoderViT
from mimcl.pipeline.index import ShardIndex

_MOST = 50_000  # images of a split, spread evenly over it: so much of ImageNet's train tells the course of a run
_K = 20


class OnlineKnn:
    """nn and knn of the model in training, as it stands, on central crops; every `every` draws, and at the end.

    Nothing of the training is touched: no weight, no generator. The decoder is its own; to be called while the stream
    that trains is released, so that there are never two in the GPU's memory.
    """

    name = "online_knn"

    def __init__(
        self,
        model: MaskedAutoencoderViT,
        train: ShardIndex,
        precision: Literal["bfloat16", "float32"],
        decoder: str,
        every: float,
        draws: int,
        world: World,
    ) -> None:
        """`train` is the index of the run, `draws` its length. Raises DataError where LabelledSplits does."""
        splits = LabelledSplits.load(train.location)
        self._splits = [(index, _chosen(index)) for index in (splits.train, splits.val)]
        self._features = MaeFeatures(self.name, model, precision)
        self._decoder = open_decoder(decoder, model.image_size, splits.train, splits.val, world=world)
        self._device, self._every, self._draws, self._world = model.device, every, draws, world

    def is_due(self, position: int, batch_size: int) -> bool:
        """Whether the step that ended at draw `position` passed a multiple of `every`, or is the last."""
        return position // self._every > (position - batch_size) // self._every or position >= self._draws

    def __call__(self) -> dict[str, float]:
        """The shares, 0 to 1, of val images given their own class, by "nn" and "knn"; on all ranks, by all ranks.

        None at all of features that are not finite: that ends the training in its own way.
        """
        bank, queries = (
            extract(index, self._features, self._decoder, None, rows, self._world) for index, rows in self._splits
        )
        labels, truth = (index.label[rows] for index, rows in self._splits)
        if not (np.isfinite(bank).all() and np.isfinite(queries).all()):
            return {}
        with torch.inference_mode():
            return dict(knn(bank, labels, queries, truth, _K, device=self._device))


def _chosen(index: ShardIndex) -> NDArray[np.int64]:
    known = np.flatnonzero(index.label >= 0)
    return known[:: math.ceil(len(known) / _MOST)]
