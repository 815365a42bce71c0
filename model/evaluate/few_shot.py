"""Few-shot classification: logistic regression on frozen features of a few samples per class, over random subsets.

The classifier follows MSN (Assran et al. 2022, arXiv 2204.07141) and its code: each feature vector is centred by the
mean of its own values and scaled to unit length, there is no bias, and full-batch L-BFGS in float64 minimises

    mean cross-entropy + (lambda / 2) |W|^2,  lambda = 0.00025 / n for n samples
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from mimcl.model.evaluate.samples import class_indices, head_accuracies, labelled, ranks_in_class

SHOTS, SEEDS, LAMBDA = (1, 5, 10), 5, 0.00025
_MAX_ITERATIONS, _GRADIENT_TOLERANCE = 2000, 1e-7


def few_shot(
    train: ArrayLike,
    train_labels: ArrayLike,
    val: ArrayLike,
    val_labels: ArrayLike,
    *,
    shots: Sequence[int] = SHOTS,
    seeds: int = SEEDS,
    strength: float = LAMBDA,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[str, float]]:
    """Yield ("1_shot", mean), ("1_shot_std", standard deviation), ("5_shot", mean) ... of accuracies on `val`.

    Mean and standard deviation (with Bessel's correction; not for a single seed) are over `seeds` subsets of `shots`
    train samples per class; a smaller class gives all its samples. A subset depends on seed, shots and labels alone.
    `train` (N, D) and `val` (M, D) are features; labels (N,) and (M,) are integers, and samples with a negative label
    are ignored. `strength` is lambda times n. Raises ValueError if no class has that many samples.
    """
    if seeds < 1 or not shots or min(shots) < 1 or strength <= 0:
        raise ValueError(f"seeds, shots and strength must be above 0 (got {seeds}, {tuple(shots)} and {strength})")
    x, labels = labelled("train samples", train, train_labels, device)
    val_x, val_labels = labelled("val samples", val, val_labels, device)
    y, val_y, classes = class_indices(labels, val_labels)
    largest = int(y.bincount().max())
    if max(shots) > largest:
        raise ValueError(f"{max(shots)} shots: no class has more than {largest} train samples")
    val_x = _centred_unit(val_x)
    for count in shots:
        accuracies = []
        for seed in range(seeds):
            rows = subset(y, count, seed)
            weight = _fit(_centred_unit(x[rows]).double(), y[rows], classes, strength / len(rows)).float()
            accuracies.append(head_accuracies(partial(_logits, weight=weight), val_x, val_y).item())
        yield f"{count}_shot", float(np.mean(accuracies))
        if seeds > 1:
            yield f"{count}_shot_std", float(np.std(accuracies, ddof=1))


def subset(y: Tensor, shots: int, seed: int) -> Tensor:
    """The rows, ascending, of at most `shots` random samples of each class of `y` (N,)."""
    return torch.from_numpy(np.flatnonzero(ranks_in_class(y, [seed, shots]) < shots)).to(y.device)


def _centred_unit(x: Tensor) -> Tensor:
    """Subtract the mean of each row of x (N, D), then scale the row to unit length."""
    return normalize(x - x.mean(dim=1, keepdim=True))


def _logits(x: Tensor, weight: Tensor) -> Tensor:
    """Features (B, D) to logits (B, 1, C)."""
    return (x @ weight)[:, None]


def _fit(x: Tensor, y: Tensor, classes: int, strength: float) -> Tensor:
    """The weights (D, C) of the logistic regression with the lowest loss."""
    weight = torch.zeros(x.shape[1], classes, dtype=x.dtype, device=x.device, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight],
        max_iter=_MAX_ITERATIONS,
        tolerance_grad=_GRADIENT_TOLERANCE,
        tolerance_change=0.0,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = cross_entropy(x @ weight, y) + strength / 2 * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return weight.detach()
