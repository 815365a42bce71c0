"""The fast linear probe of a trained encoder, beside that of the same encoder untrained."""

from __future__ import annotations

from pathlib import Path

from mimcl.cli.console import warn
from mimcl.cli.errors import ConfigError
from mimcl.cli.evaluate.features import FeatureOptions, evaluate
from mimcl.cli.evaluate.labelled import Labelled
from mimcl.cli.evaluate.results import Result
from mimcl.model.distributed import World
from mimcl.model.evaluate.linear_fast import BATCH, RATES, linear_fast
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
    """Of a softmax layer on features computed once, at the best of 13 learning rates; as model/evaluate/linear_fast.py.

    Rank 0 says when the best rate is the first or the last. Further as features.evaluate; DataError also where no class
    has two images, of which one chooses the rate.
    """
    if epochs is not None and epochs <= 0:
        raise ConfigError(f"--epochs is {epochs:g}; it must be above 0")
    batch_size = batch_size or BATCH

    def check(splits: Labelled) -> None:
        if splits.most == 1:
            raise DataError(f"no class of {splits.train.shown} has two train images, of which one chooses the rate")

    result = evaluate(
        "linear",
        path,
        data,
        {"recipe": "fast", "epochs": epochs or "auto", "batch_size": batch_size, "seed": seed},
        lambda of: linear_fast(
            of.train,
            of.train_labels,
            of.val,
            of.val_labels,
            epochs=epochs,
            batch_size=batch_size,
            seed=seed,
            device=of.device,
        ),
        check,
        options,
        world,
    )
    rate = result.trained["learning_rate"]
    if (world is None or world.rank == 0) and rate in (RATES[0], RATES[-1]):
        warn(
            f"the best learning rate, {rate:g}, is at the edge of the sweep; a better one may lie beyond: try "
            f"{'fewer' if rate == RATES[0] else 'more'} --epochs"
        )
    return result
