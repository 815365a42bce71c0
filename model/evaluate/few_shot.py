"""Few-shot classification: logistic regression on a few frozen features of each class, over several such subsets.

The classifier is that of MSN (Assran et al. 2022, arXiv 2204.07141) and its code: each feature less the mean of its own
values and brought to unit length, no bias, and the minimum of

    mean cross-entropy + (lambda / 2) |W|^2,  lambda = 0.00025 / n for n samples

which full-batch L-BFGS finds, in float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from mimcl.model.evaluate.samples import labelled, numbered, places

SHOTS, SEEDS, LAMBDA = (1, 5, 10), 5, 0.00025
_ROWS = 4096  # judged at a time
_ITERATIONS, _GRADIENT = 2000, 1e-7  # at most; the largest slope that is taken for 0


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
    """Yields ("1_shot", mean), ("1_shot_std", spread), ("5_shot", mean) ...: shares of val samples given their class.

    The mean is over `seeds` subsets of `shots` train samples a class, the spread their standard deviation (of a sample;
    none of one seed). A class with fewer samples gives all it has. A subset is a pure function of seed, shots, labels.
    `train` (N, D) and `val` (M, D) are features; labels (N,) and (M,) are whole numbers, and samples with a negative
    one are left out. `strength` is lambda times n. ValueError where no class has that many samples.
    """
    if seeds < 1 or not shots or min(shots) < 1 or strength <= 0:
        raise ValueError(f"seeds are {seeds}, shots {tuple(shots)} and the strength {strength}; all must be above 0")
    x, labels = labelled("train samples", train, train_labels, device)
    val_x, val_labels = labelled("val samples", val, val_labels, device)
    y, val_y, classes = numbered(labels, val_labels)
    most = int(y.bincount().max())
    if max(shots) > most:
        raise ValueError(f"{max(shots)} shots a class: no class has more than {most} samples to learn from")
    val_x = _unit(val_x)
    for count in shots:
        found = []
        for seed in range(seeds):
            rows = subset(y, count, seed)
            weight = _fitted(_unit(x[rows]).double(), y[rows], classes, strength / len(rows)).float()
            right = sum(
                ((features @ weight).argmax(dim=1) == truth).sum()
                for features, truth in zip(val_x.split(_ROWS), val_y.split(_ROWS), strict=True)
            )
            found.append(right.item() / len(val_y))
        yield f"{count}_shot", float(np.mean(found))
        if seeds > 1:
            yield f"{count}_shot_std", float(np.std(found, ddof=1))


def subset(y: Tensor, shots: int, seed: int) -> Tensor:
    """Rows of at most `shots` samples of each class of `y` (N,), ascending."""
    return torch.from_numpy(np.flatnonzero(places(y, [seed, shots]) < shots)).to(y.device)


def _unit(x: Tensor) -> Tensor:
    return normalize(x - x.mean(dim=1, keepdim=True))


def _fitted(x: Tensor, y: Tensor, classes: int, strength: float) -> Tensor:
    """Weights (D, C) at the minimum."""
    weight = torch.zeros(x.shape[1], classes, dtype=x.dtype, device=x.device, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight],
        max_iter=_ITERATIONS,
        tolerance_grad=_GRADIENT,
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
