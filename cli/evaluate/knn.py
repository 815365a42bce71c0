"""Evaluate an encoder, trained and untrained, by nearest neighbours."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from mimcl.cli.evaluate.features import FeatureOptions, evaluate_features
from mimcl.cli.evaluate.labelled import LabelledSplits
from mimcl.cli.evaluate.results import Result
from mimcl.model.evaluate.knn import knn as knn_accuracies
from mimcl.model.world import World
from mimcl.pipeline.files import DataError

K = 20


def knn(
    path: Path,
    data: str | Path | None = None,
    k: int = K,
    options: FeatureOptions = FeatureOptions(),
    world: World | None = None,
) -> Result:
    """Accuracies "nn", with a single neighbour, and "knn", by a vote of `k` neighbours.

    See `evaluate_features`; also raises DataError if there are fewer than `k` train images.
    """

    def check(splits: LabelledSplits) -> None:
        if k > splits.counts[0]:
            raise DataError(f"--k {k} is more than the {splits.counts[0]:,} labelled train images; give a smaller --k")

    return evaluate_features("knn", path, data, {"k": k}, partial(knn_accuracies, k=k), check, options, world)
