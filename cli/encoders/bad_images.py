"""Images of which no features can be extracted: how they are marked, reported and limited."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mimcl.cli.console import warn
from mimcl.cli.suggest import list_damage
from mimcl.pipeline.data_config import DataConfig, bad_allowed
from mimcl.pipeline.files import DataError
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.stream import Batch

_MARK = -np.inf  # in all columns of the features of a bad image; an encoder that diverged gives NaN


class BadImages:
    """Bad images of a split: each is reported once, and too many are an error, as in training.

    At most the share `max_bad` of the split's images may be bad; 10 are always allowed.
    """

    def __init__(self, index: ShardIndex, max_bad: float = DataConfig.max_bad) -> None:
        self._index, self._allowed = index, bad_allowed(max_bad, index.samples)
        self._seen: set[int] = set()

    @property
    def count(self) -> int:
        """The number of bad images that this process has met."""
        return len(self._seen)

    def places(self, batch: Batch) -> list[int]:
        """Return the places of the bad images of a batch, after a warning for each new one. Raises DataError."""
        for bad in batch.bad:
            if bad.sample_id not in self._seen:
                self._seen.add(bad.sample_id)
                warn(f"{self._index.described(bad.sample_id)} is bad and has no features: {bad.reason}")
        self._limit(self._seen)
        return [bad.draw - int(batch.draws[0]) for bad in batch.bad]

    def without(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches without their bad images; batches without any other are skipped."""
        for batch in batches:
            if not (places := self.places(batch)):
                yield batch
                continue
            good = np.setdiff1d(np.arange(len(batch.draws)), places)
            if len(good):
                images = batch.images[torch.from_numpy(good).to(batch.images.device)]
                yield replace(batch, images=images, draws=batch.draws[good], labels=batch.labels[good])

    def require_few(self, bad: NDArray[np.bool_]) -> None:
        """Raise DataError if too many of all images (N,) are bad."""
        self._limit(np.flatnonzero(bad).tolist())

    def _limit(self, bad: Iterable[int]) -> None:
        if len(found := list(bad)) <= self._allowed:
            return
        shards, counts = np.unique(self._index.shard[found], return_counts=True)
        worst = ", ".join(
            f"{counts[place]} in {self._index.shards[shards[place]]['name']}" for place in np.argsort(-counts)[:3]
        )
        raise DataError(
            f"{len(found):,} bad images of {self._index.samples:,} are more than the {self._allowed:,.0f} allowed "
            f"({worst}); repair the shards ({list_damage(self._index.shown)}), or raise --max-bad"
        )


def describe_bad(index: ShardIndex, rows: NDArray[np.int64]) -> dict[str, Any]:
    """Return the entry of prototypes.json that lists the bad images in these rows; nothing without any."""
    return {"bad": [{"key": index.key(row), "path": index.path(row)} for row in rows.tolist()]} if len(rows) else {}


def mark(features: NDArray[np.float32], places: list[int]) -> NDArray[np.float32]:
    """Return features (n, D) in which the images at these places are marked as bad."""
    if places:
        features = features.copy()
        features[places] = _MARK
    return features


def is_bad(features: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return which of the features (n, D) are of bad images, (n,)."""
    bad = features[:, 0] == _MARK
    if bad.any():
        bad &= (features == _MARK).all(axis=1)
    return bad
