"""Nearest neighbours: the features of a trained encoder beside those of the same encoder untrained."""

from __future__ import annotations

from pathlib import Path

from mimcl.cli.evaluate.features import FeatureOptions, evaluate
from mimcl.cli.evaluate.labelled import Labelled
from mimcl.cli.evaluate.results import Result
from mimcl.model.distributed import World
from mimcl.model.evaluate.knn import knn as by_neighbours
from mimcl.pipeline.files import DataError

K = 20


def knn(
    path: Path,
    data: str | Path | None = None,
    k: int = K,
    options: FeatureOptions = FeatureOptions(),
    world: World | None = None,
) -> Result:
    """nn, by one neighbour, and knn, by a vote of k, of an encoder and of the same untrained.

    Further as features.evaluate; DataError also for more neighbours than train images.
    """

    def check(splits: Labelled) -> None:
        if k > splits.counts[0]:
            raise DataError(f"--k {k} is more than the {splits.counts[0]:,} labelled train images; give fewer")

    return evaluate(
        "knn",
        path,
        data,
        {"k": k},
        lambda of: by_neighbours(of.train, of.train_labels, of.val, of.val_labels, k, device=of.device),
        check,
        options,
        world,
    )
