"""Evaluates the model in training every so often; features that several measures need are extracted once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from mimcl.cli.config import Config
from mimcl.cli.encoders.bad_images import BadImages
from mimcl.cli.encoders.mae_features import MaeFeatures
from mimcl.cli.encoders.split_features import extract, open_decoder
from mimcl.cli.evaluate.cached_features import Source
from mimcl.cli.run.online_knn import OnlineKnn
from mimcl.cli.run.online_rank import OnlineRank
from mimcl.cli.run.training_data import TrainingData
from mimcl.model.autoencoder import MaskedAutoencoder
from mimcl.model.steps import Step
from mimcl.model.world import World


class Measure(Protocol):
    """A measure of features; `settings` are those of its results."""

    @property
    def name(self) -> str: ...
    @property
    def settings(self) -> dict[str, Any]: ...
    @property
    def sources(self) -> Sequence[Source]: ...

    def __call__(self, features: Sequence[NDArray[np.float32]]) -> dict[str, float]:
        """Return the values by name, given the features (N, D) of each source; empty if they are not finite."""


class Found(NamedTuple):
    """What a measure found."""

    name: str
    values: dict[str, float]
    settings: dict[str, Any]


class OnlineEvaluation:
    """The measures that the configuration asks for, each every so many epochs and at the end of the run.

    They change nothing of the training: no weight, no generator. They have a decoder of their own; call this while the
    stream of the training is released, so that there are never two decoders in the GPU's memory.
    """

    def __init__(self, model: MaskedAutoencoder, data: TrainingData, config: Config, world: World) -> None:
        """`config` is the resolved configuration of the run. Raises DataError where a measure cannot use the data."""
        epochs, samples = config.trainer, data.index.samples
        self._measures: list[tuple[Measure, float]] = []  # with the number of draws after which it is due again
        if epochs.online_knn_epochs:
            knn = OnlineKnn(data.index.location, model.device, world)
            self._measures.append((knn, epochs.online_knn_epochs * samples))
        if epochs.online_rank_epochs:
            self._measures.append((OnlineRank(data.index), epochs.online_rank_epochs * samples))
        self._batch_size, self._draws, self._world = config.data.batch_size, data.draws, world
        sources = [source for measure, _ in self._measures for source in measure.sources]
        self._indices = {source.index.split: source.index for source in sources}
        self._bad = {split: BadImages(index, config.data.max_bad) for split, index in self._indices.items()}
        precision: Literal["bfloat16", "float32"] = "bfloat16" if config.trainer.precision == "bfloat16" else "float32"
        self._features = MaeFeatures("the model in training", model, precision)
        if sources:
            views, indices = max(source.views for source in sources), self._indices.values()
            self._decoder = open_decoder(config.data.decoder, model.image_size, *indices, world=world, views=views)

    def due(self, step: Step) -> list[Measure]:
        """Return the measures for which the step passed a multiple of their epochs, all after the last step.

        None where the run stops early.
        """
        if step.position >= self._draws:
            return [measure for measure, _ in self._measures]
        if step.stopping:  # a run that is asked to stop has seconds
            return []
        before = step.position - self._batch_size
        return [measure for measure, every in self._measures if step.position // every > before // every]

    def __call__(self, measures: Sequence[Measure]) -> list[Found]:
        """Return what these measures find; the work of all ranks."""
        extracted: dict[tuple[str, int], tuple[NDArray[np.int64], NDArray[np.float32]]] = {}  # by split and views
        for split, views in dict.fromkeys(_kind(source) for measure in measures for source in measure.sources):
            wanted = [_rows(s) for measure in measures for s in measure.sources if _kind(s) == (split, views)]
            rows = np.unique(np.concatenate(wanted))
            index, bad = self._indices[split], self._bad[split]
            features = extract(index, self._features, self._decoder, None, rows, self._world, bad, views)
            extracted[split, views] = rows, features
        found = []
        for measure in measures:
            own = []
            for source in measure.sources:
                rows, features = extracted[_kind(source)]
                own.append(features[np.searchsorted(rows, _rows(source))])
            found.append(Found(measure.name, measure(own), measure.settings))
        return found


def _kind(source: Source) -> tuple[str, int]:
    return source.index.split, source.views


def _rows(source: Source) -> NDArray[np.int64]:
    return np.arange(source.index.samples) if source.sample_ids is None else source.sample_ids
