"""Evaluate an encoder, trained and untrained, by the fast linear probe."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from mimcl.cli.console import warn
from mimcl.cli.errors import ConfigError
from mimcl.cli.evaluate.eval_options import FeatureOptions
from mimcl.cli.evaluate.features import evaluate_features
from mimcl.cli.evaluate.labelled import LabelledSplits
from mimcl.cli.evaluate.results import Result
from mimcl.model.evaluate.linear_fast import BATCH, RATES, linear_fast
from mimcl.model.world import World
from mimcl.pipeline.files import DataError


def linear(
    path: Path,
    data: str | Path | None = None,
    epochs: float | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    options: FeatureOptions = FeatureOptions(),
    world: World | None = None,
) -> Result:
    """Accuracy of a softmax layer on cached features, at the best of 13 learning rates; see `linear_fast`.

    Rank 0 warns if the best rate is the lowest or the highest. See `evaluate_features`; also raises DataError if no
    class has two train images, since one is held out to choose the rate.
    """
    if epochs is not None and epochs <= 0:
        raise ConfigError(f"--epochs is {epochs:g}; it must be above 0")
    batch_size = batch_size or BATCH

    def check(splits: LabelledSplits) -> None:
        if splits.largest_class == 1:
            raise DataError(f"no class of {splits.train.shown} has two train images, to hold one out for the rate")

    settings = {"recipe": "fast", "epochs": epochs or "auto", "batch_size": batch_size, "seed": seed}
    evaluator = partial(linear_fast, epochs=epochs, batch_size=batch_size, seed=seed)
    result = evaluate_features("linear", path, data, settings, evaluator, check, options, world)
    rate = result.trained["learning_rate"]
    if (world is None or world.rank == 0) and rate in (RATES[0], RATES[-1]):
        more = "fewer" if rate == RATES[0] else "more"
        warn(f"the best learning rate, {rate:g}, is at the edge of the sweep; try {more} --epochs")
    return result
