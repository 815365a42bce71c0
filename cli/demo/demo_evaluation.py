"""Evaluate a run as `mimcl eval knn` does, and keep which images were classified correctly."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mimcl.cli.evaluate.cached_features import ENCODERS
from mimcl.cli.evaluate.eval_options import NEIGHBOURS, FeatureOptions
from mimcl.cli.evaluate.features import evaluate_features
from mimcl.cli.evaluate.labelled import require_neighbours
from mimcl.model.evaluate.knn import correct
from mimcl.model.world import World

Correct = NDArray[np.bool_]  # (M,), of the val images


def evaluate_nn(run: Path) -> dict[str, Correct]:
    """Record the accuracies nn and knn of a run; return which val images each of ENCODERS classifies correctly by nn.

    Raises what `evaluate_features` raises.
    """
    by_nn: list[Correct] = []

    def evaluator(
        train: NDArray[np.float32],
        train_labels: NDArray[np.int32],
        val: NDArray[np.float32],
        val_labels: NDArray[np.int32],
        /,
        *,
        device: torch.device,
    ) -> Iterator[tuple[str, float]]:
        found = correct(train, train_labels, val, val_labels, NEIGHBOURS, device=device)
        by_nn.append(found["nn"].cpu().numpy())
        return ((name, int(of.sum()) / len(of)) for name, of in found.items())

    check = partial(require_neighbours, k=NEIGHBOURS)
    evaluate_features("knn", run, None, {"k": NEIGHBOURS}, evaluator, check, FeatureOptions(), World())
    return dict(zip(ENCODERS, by_nn, strict=True))
