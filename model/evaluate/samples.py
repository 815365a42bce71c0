"""Prepare labelled features for an evaluator."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

_ROWS = 4096  # classified at a time


def labelled(name: str, features: ArrayLike, labels: ArrayLike, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Move the labelled samples to the device: features (N, D), float32, and labels (N,), int64, none negative.

    Raises ValueError, naming them `name`, if no sample has a label or a feature is not finite.
    """
    x, y = np.asarray(features, np.float32), np.asarray(labels, np.int64)
    if len(x) != len(y):
        raise ValueError(f"the {name}: {len(x)} samples but {len(y)} labels")
    if not (known := y >= 0).all():
        x, y = x[known], y[known]
    if not len(y):
        raise ValueError(f"the {name}: no sample has a label")
    if not np.isfinite(x).all():
        raise ValueError(f"the {name}: the features are not all finite numbers")
    return torch.tensor(x, device=device), torch.tensor(y, device=device)


def class_indices(train: Tensor, val: Tensor) -> tuple[Tensor, Tensor, int]:
    """Convert labels (N,) and (M,) to indices of the C classes of `train`, -1 for classes only in `val`; and C.

    Raises ValueError if there is a single class.
    """
    classes = train.unique()
    if len(classes) < 2:
        raise ValueError("all train samples have the same class")
    indices = torch.searchsorted(classes, val).clamp(max=len(classes) - 1)
    known = classes[indices] == val
    return torch.searchsorted(classes, train), torch.where(known, indices, -1), len(classes)


def ranks_in_class(labels: Tensor, key: Sequence[int]) -> NDArray[np.int64]:
    """The rank of each sample (N,) within its class 0 ... C - 1, in a random order that depends on `key` alone."""
    y = labels.cpu().numpy()
    order = np.lexsort((np.random.default_rng(key).random(len(y)), y))
    counts = np.bincount(y)
    ranks = np.empty(len(order), np.int64)
    ranks[order] = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    return ranks


@torch.no_grad()
def head_accuracies(heads: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    """The accuracy of each of H classifiers, which map features (B, D) to logits (B, H, C): float64 (H,)."""
    correct = sum(
        (heads(rows).argmax(dim=2) == classes[:, None]).sum(dim=0)
        for rows, classes in zip(x.split(_ROWS), y.split(_ROWS), strict=True)
    )
    return correct.double() / len(y)
