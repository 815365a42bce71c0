"""Evaluate the frozen features of an encoder on labelled images, trained and untrained, and record the result."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from mimcl.cli.console import console
from mimcl.cli.evaluate.cached_features import ENCODERS, Features, Source, load_encoder, on_cached_features
from mimcl.cli.evaluate.eval_options import FeatureOptions
from mimcl.cli.evaluate.labelled import LabelledSplits, of_seen_classes
from mimcl.cli.evaluate.results import Result, record
from mimcl.model.world import World


class Evaluator(Protocol):
    """Yields the results of an evaluation by name, given features (N, D) and (M, D), and labels (N,) and (M,)."""

    def __call__(
        self,
        train: NDArray[np.float32],
        train_labels: NDArray[np.int32],
        val: NDArray[np.float32],
        val_labels: NDArray[np.int32],
        /,
        *,
        device: torch.device,
    ) -> Iterable[tuple[str, float]]: ...


def evaluate_features(
    evaluation: str,
    path: Path,
    data: str | Path | None,
    settings: dict[str, Any],
    evaluator: Evaluator,
    check: Callable[[LabelledSplits], None],
    options: FeatureOptions,
    world: World | None,
) -> Result:
    """Apply `evaluator` to the features of an encoder and to those of the same encoder untrained, on central crops.

    `path` is a run, a checkpoint or a file of weights; `data` None means the shards that it was trained on. `check`
    raises before an image is decoded if the labels do not suffice. The ranks of `world` share the images; rank 0
    evaluates and records the result, and all ranks return it. See `on_cached_features`. Raises DataError if the shards
    lack a val split or labels, CheckpointError if there is no encoder.
    """
    world = world or World()
    encoder = load_encoder(path, world)
    splits = LabelledSplits.load(encoder.config.data.root if data is None else data)
    check(splits)
    if splits.note and world.rank == 0:
        console.print(splits.note)
    settings = settings | {"pool": options.pool}
    result = Result(evaluation, encoder.path, splits.train.shown, *splits.counts, splits.classes, settings, {})
    sources = Source(splits.train), Source(splits.val)

    def evaluate(features: Sequence[Features], device: torch.device) -> dict[str, Any]:
        """Return fields of the result."""
        found: dict[str, Any] = {}
        train, val = features
        good = [source.good(of[0], options.max_bad) for source, of in zip(sources, features, strict=True)]
        labels = np.where(good[0], splits.train.label, np.int32(-1))
        truth = np.where(good[1], splits.val_labels, np.int32(-1))
        judged = of_seen_classes(truth, labels)  # all train images of a class may be bad
        for name, bank, queries in zip(ENCODERS, train, val, strict=True):
            found[name] = dict(evaluator(bank, labels, queries, judged, device=device))
        found |= {"train": int((labels >= 0).sum()), "val": int((judged >= 0).sum())}
        found["unseen"] = splits.unseen + int((judged != truth).sum())
        record(encoder, replace(result, **found), splits.val)
        return found

    return replace(result, **on_cached_features(encoder, sources, options, world, evaluate))
