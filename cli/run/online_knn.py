"""Evaluates the model in training by its nearest neighbours."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from mimcl.cli.config import Config
from mimcl.cli.console import console
from mimcl.cli.encoders.bad_images import BadImages, is_bad
from mimcl.cli.encoders.mae_features import MaeFeatures
from mimcl.cli.encoders.split_features import extract, open_decoder
from mimcl.cli.evaluate.labelled import UNSEEN, LabelledSplits, of_seen_classes
from mimcl.cli.run.training_data import TrainingData
from mimcl.model.autoencoder import MaskedAutoencoder
from mimcl.model.evaluate.knn import knn
from mimcl.model.steps import Step
from mimcl.model.world import World
from mimcl.pipeline.files import DataError

_MOST = 50_000  # images of a split, spread evenly over it: enough of ImageNet to follow a run
_K = 20


class OnlineKnn:
    """nn and knn of the model in training, on central crops, every `trainer.online_knn_epochs` and at the end.

    It changes nothing of the training: no weight, no generator. It has a decoder of its own; call it while the stream
    of the training is released, so that there are never two decoders in the GPU's memory.
    """

    name = "online_knn"
    settings: dict[str, int]  # of its results: how many val images are left out, if any

    def __init__(self, model: MaskedAutoencoder, data: TrainingData, config: Config, world: World) -> None:
        """`config` is the resolved configuration of the run. Rank 0 prints which val images are left out.

        Raises DataError where LabelledSplits does.
        """
        try:
            splits = LabelledSplits.load(data.index.location)
        except DataError as error:
            raise DataError(f"{error}, or leave out --online-knn") from None
        if splits.note and world.rank == 0:
            console.print(splits.note)
        train = _chosen(splits.train.label)
        known = of_seen_classes(splits.val_labels, splits.train.label[train])  # those chosen may lack a small class
        val = _chosen(known)
        self._splits = [(splits.train, train), (splits.val, val)]
        self._labels = splits.train.label[train], known[val]
        unseen = int(np.count_nonzero(splits.val.label != known))
        self.settings = {"val": len(val), UNSEEN: unseen} if unseen else {}
        self._bad = [BadImages(index, config.data.max_bad) for index, _ in self._splits]
        precision: Literal["bfloat16", "float32"] = "bfloat16" if config.trainer.precision == "bfloat16" else "float32"
        self._features = MaeFeatures(self.name, model, precision)
        self._decoder = open_decoder(config.data.decoder, model.image_size, splits.train, splits.val, world=world)
        self._every = config.trainer.online_knn_epochs * data.index.samples  # draws
        self._batch_size, self._draws = config.data.batch_size, data.draws
        self._device, self._world = model.device, world

    def is_due(self, step: Step) -> bool:
        """Whether the step passed a multiple of `online_knn_epochs`, or is the last; not where the run stops early."""
        if step.position >= self._draws:
            return True
        passed = step.position // self._every > (step.position - self._batch_size) // self._every
        return passed and not step.stopping  # a run that is asked to stop has seconds

    def __call__(self) -> dict[str, float]:
        """Return the shares, 0 to 1, of val images given their own class, by "nn" and "knn"; the work of all ranks.

        Empty where features are not finite: the training then ends by itself.
        """
        bank, queries = (
            extract(index, self._features, self._decoder, None, rows, self._world, bad)
            for (index, rows), bad in zip(self._splits, self._bad, strict=True)
        )
        good = [~is_bad(features) for features in (bank, queries)]
        if not (np.isfinite(bank[good[0]]).all() and np.isfinite(queries[good[1]]).all()):
            return {}
        labels, truth = (np.where(known, of, -1) for of, known in zip(self._labels, good, strict=True))
        with torch.inference_mode():
            return dict(knn(bank, labels, queries, truth, _K, device=self._device))


def _chosen(labels: NDArray[np.int32]) -> NDArray[np.int64]:
    known = np.flatnonzero(labels >= 0)
    return known[:: math.ceil(len(known) / _MOST) or 1]
