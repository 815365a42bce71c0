"""Evaluate an encoder, trained and untrained, by few-shot classification."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from mimcl.cli.console import warn
from mimcl.cli.evaluate.eval_options import SEEDS, SHOTS, FeatureOptions
from mimcl.cli.evaluate.features import evaluate_features
from mimcl.cli.evaluate.labelled import LabelledSplits, require_shots
from mimcl.cli.evaluate.results import Result
from mimcl.model.evaluate.few_shot import few_shot as few_shot_accuracies
from mimcl.model.world import World


def few_shot(
    path: Path,
    data: str | Path | None = None,
    shots: Sequence[int] = SHOTS,
    seeds: int = SEEDS,
    options: FeatureOptions = FeatureOptions(),
    world: World | None = None,
) -> Result:
    """Accuracies of logistic regression on `shots` train images per class: mean and deviation over `seeds` subsets.

    A smaller class gives all its images; rank 0 warns how many such classes there are. See `evaluate_features`; also
    raises DataError if `shots` exceeds the largest class.
    """
    shots = sorted(set(shots))

    def check(splits: LabelledSplits) -> None:
        require_shots(splits, shots)
        smaller = int((splits.class_sizes < shots[-1]).sum())
        if smaller and (world is None or world.rank == 0):
            warn(f"{smaller} of {splits.classes} classes have fewer than {shots[-1]} train images; using all of them")

    settings = {"shots": list(shots), "seeds": seeds}
    evaluator = partial(few_shot_accuracies, shots=shots, seeds=seeds)
    return evaluate_features("few_shot", path, data, settings, evaluator, check, options, world)
