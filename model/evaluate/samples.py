"""Features with labels, made ready for an evaluator."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor


def labelled(name: str, features: ArrayLike, labels: ArrayLike, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Features (N, D), float32, and labels (N,), int64, of the samples that have one (not negative), on the device.

    ValueError, which calls them `name`, where nothing is left, or for features that are not finite.
    """
    features, labels = np.asarray(features, np.float32), np.asarray(labels, np.int64)
    if len(features) != len(labels):
        raise ValueError(f"the {name}: {len(features)} samples but {len(labels)} labels")
    if not (known := labels >= 0).all():
        features, labels = features[known], labels[known]
    if not len(labels):
        raise ValueError(f"the {name}: no sample has a label")
    if not np.isfinite(features).all():
        raise ValueError(f"the {name}: the features are not all finite numbers")
    return torch.tensor(features, device=device), torch.tensor(labels, device=device)


def numbered(train: Tensor, val: Tensor) -> tuple[Tensor, Tensor, int]:
    """Labels (N,) and (M,) as numbers of the C classes of `train`, and C; -1 in `val` is a class that it has not.

    ValueError for a single class.
    """
    classes = train.unique()
    if len(classes) < 2:
        raise ValueError("all samples to learn from are of one class")
    places = torch.searchsorted(classes, val).clamp(max=len(classes) - 1)
    known = classes[places] == val
    return torch.searchsorted(classes, train), torch.where(known, places, -1), len(classes)


def places(labels: Tensor, key: Sequence[int]) -> NDArray[np.int64]:
    """The place of each sample (N,) within its class 0 ... C - 1, in an order that is a pure function of `key`."""
    labels = labels.cpu().numpy()
    order = np.lexsort((np.random.default_rng(key).random(len(labels)), labels))
    counts = np.bincount(labels)
    found = np.empty(len(order), np.int64)
    found[order] = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    return found
