"""Few-shot classification with a trained encoder, beside that with the same encoder untrained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mimcl.cli.console import warn
from mimcl.cli.errors import ConfigError
from mimcl.cli.evaluate.features import FeatureOptions, evaluate
from mimcl.cli.evaluate.labelled import Labelled
from mimcl.cli.evaluate.results import Result
from mimcl.model.distributed import World
from mimcl.model.evaluate.few_shot import SEEDS, SHOTS
from mimcl.model.evaluate.few_shot import few_shot as by_regression
from mimcl.pipeline.files import DataError


def few_shot(
    path: Path,
    data: str | Path | None = None,
    shots: Sequence[int] = SHOTS,
    seeds: int = SEEDS,
    options: FeatureOptions = FeatureOptions(),
    world: World | None = None,
) -> Result:
    """Of logistic regression on `shots` images a class: mean and, of several, spread over `seeds` subsets.

    A class that has fewer gives all it has, and rank 0 says how many such there are. Further as features.evaluate;
    DataError also for more shots than any class has.
    """
    shots = sorted(set(shots))
    if not shots or shots[0] < 1 or seeds < 1:
        raise ConfigError(f"--shots are {shots} and --seeds {seeds}; all must be at least 1")

    def check(splits: Labelled) -> None:
        if shots[-1] > splits.most:
            raise DataError(
                f"--shots {shots[-1]}: no class of {splits.train.shown} has more than {splits.most} train images; "
                "give fewer"
            )
        short = int((splits.sizes < shots[-1]).sum())
        if short and (world is None or world.rank == 0):
            warn(f"{short} of {splits.classes} classes have fewer than {shots[-1]} train images and give all they have")

    return evaluate(
        "few_shot",
        path,
        data,
        {"shots": list(shots), "seeds": seeds},
        lambda of: by_regression(
            of.train, of.train_labels, of.val, of.val_labels, shots=shots, seeds=seeds, device=of.device
        ),
        check,
        options,
        world,
    )
