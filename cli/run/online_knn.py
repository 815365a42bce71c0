"""Evaluates the model in training by its nearest neighbours."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from mimcl.cli.config import Config
from mimcl.cli.encoders.bad_images import BadImages, is_bad
from mimcl.cli.encoders.mae_features import MaeFeatures
from mimcl.cli.encoders.split_features import extract, open_decoder
from mimcl.cli.evaluate.labelled import LabelledSplits
from mimcl.cli.run.training_data import TrainingData
from mimcl.model.distributed import World
from mimcl.model.evaluate.knn import knn
from mimcl.model.mae import MaskedAutoencoderViT
from mimcl.model.steps import Step
from mimcl.pipeline.index import ShardIndex

_MOST = 50_000  # images of a split, spread evenly over it: enough of ImageNet to follow a run
_K = 20


class OnlineKnn:
    """nn and knn of the model in training, on central crops, every `trainer.online_knn_epochs` and at the end.

    It changes nothing of the training: no weight, no generator. It has a decoder of its own; call it while the stream
    of the training is released, so that there are never two decoders in the GPU's memory.
    """

    name = "online_knn"

    def __init__(self, model: MaskedAutoencoderViT, data: TrainingData, config: Config, world: World) -> None:
        """`config` is the resolved configuration of the run. Raises DataError where LabelledSplits does."""
        splits = LabelledSplits.load(data.index.location)
        self._splits = [(index, _chosen(index)) for index in (splits.train, splits.val)]
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
        labels, truth = (
            np.where(known, index.label[rows], -1) for (index, rows), known in zip(self._splits, good, strict=True)
        )
        with torch.inference_mode():
            return dict(knn(bank, labels, queries, truth, _K, device=self._device))


def _chosen(index: ShardIndex) -> NDArray[np.int64]:
    known = np.flatnonzero(index.label >= 0)
    return known[:: math.ceil(len(known) / _MOST)]
