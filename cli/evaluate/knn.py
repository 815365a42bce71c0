"""Evaluate an encoder, trained and untrained, by nearest neighbours."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from mimcl.cli.evaluate.eval_options import NEIGHBOURS, FeatureOptions
from mimcl.cli.evaluate.features import evaluate_features
from mimcl.cli.evaluate.labelled import require_neighbours
from mimcl.cli.evaluate.results import Result
from mimcl.model.evaluate.knn import knn as knn_accuracies
from mimcl.model.world import World


def knn(
    path: Path,
    data: str | Path | None = None,
    k: int = NEIGHBOURS,
    options: FeatureOptions = FeatureOptions(),
    world: World | None = None,
) -> Result:
    """Accuracies "nn", with a single neighbour, and "knn", by a vote of `k` neighbours.

    See `evaluate_features`; also raises DataError if there are fewer than `k` train images.
    """
    check = partial(require_neighbours, k=k)
    return evaluate_features("knn", path, data, {"k": k}, partial(knn_accuracies, k=k), check, options, world)
