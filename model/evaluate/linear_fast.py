"""A fast linear probe: a softmax layer on frozen features, trained with all learning rates of a sweep at once.

As in DINOv2 (Oquab et al. 2023, arXiv 2304.07193, section 7.1), features are extracted once, without augmentation, and
a grid of learning rates is tried with SGD of momentum 0.9, cosine decay to 0 and no weight decay. Unlike DINOv2, the
features are standardised, as by the BatchNorm of MAE's linear probe, and the learning rate is chosen on a held-out
tenth of the train samples, not on val.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn.functional import cross_entropy

from mimcl.model.evaluate.samples import class_indices, head_accuracies, labelled, ranks_in_class

# For a batch of 256: DINOv2's grid, extended upwards by a factor of 10.
RATES = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0)
EPOCHS, BATCH = 10.0, 512
_MIN_STEPS = 2000  # small data sets get more epochs
_HELD_OUT = 10  # one in so many samples of each class
_PERMUTATION, _HOLD_OUT = 0, 1  # random streams


def linear_fast(
    train: ArrayLike,
    train_labels: ArrayLike,
    val: ArrayLike,
    val_labels: ArrayLike,
    *,
    epochs: float | None = None,
    batch_size: int = BATCH,
    rates: Sequence[float] = RATES,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[str, float]]:
    """Yield ("linear", accuracy on `val`) of a layer trained on all train samples, then how its rate was chosen.

    These are "learning_rate", for a batch of 256, "held_out", the accuracy on held-out train samples at that rate, and
    "held_out_lowest", the accuracy at the worst rate of the sweep.

    `train` (N, D) and `val` (M, D) are features, computed on in float32; labels (N,) and (M,) are integers, and samples
    with a negative label are ignored. `epochs` None means 10, or enough for 2,000 steps. Held-out samples and the order
    of batches depend on the seed alone. Raises ValueError if the labels do not suffice to train and choose a rate.
    """
    if batch_size < 1 or (epochs is not None and epochs <= 0):
        raise ValueError(f"batch size and epochs must be above 0 (got {batch_size} and {epochs})")
    x, labels = labelled("train samples", train, train_labels, device)
    val_x, val_labels = labelled("val samples", val, val_labels, device)
    y, val_y, classes = class_indices(labels, val_labels)
    variance, mean = torch.var_mean(x, dim=0, correction=0)
    for features in (x, val_x):  # in place: for ImageNet they take gigabytes
        features.sub_(mean).mul_((variance + 1e-6).rsqrt())
    held = _held_out(y, seed)
    steps = _steps(len(y), epochs, batch_size)
    if not held.any():
        raise ValueError("no class has two train samples, one of which is held out to choose the learning rate")
    heads = _train(x, y, classes, (~held).nonzero().squeeze(1), rates, steps, batch_size, seed)
    held_out = head_accuracies(heads, x[held], y[held])
    best = int(held_out.argmax())  # the lowest of equally good rates
    all_rows = torch.arange(len(y), device=x.device)
    head = _train(x, y, classes, all_rows, rates[best : best + 1], steps, batch_size, seed)
    yield "linear", head_accuracies(head, val_x, val_y).item()
    yield "learning_rate", rates[best]
    yield "held_out", held_out[best].item()
    yield "held_out_lowest", held_out.min().item()


class _Heads(torch.nn.Module):
    """H linear layers as one matrix product, initially zero: (B, D) to (B, H, C)."""

    def __init__(self, width: int, heads: int, classes: int, device: torch.device) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(width, heads * classes, device=device))
        self.bias = torch.nn.Parameter(torch.zeros(heads * classes, device=device))
        self._shape = heads, classes

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight).unflatten(1, self._shape)


def _train(
    x: Tensor, y: Tensor, classes: int, rows: Tensor, rates: Sequence[float], steps: int, batch_size: int, seed: int
) -> _Heads:
    """Train a head for each learning rate on these rows (n,)."""
    heads = _Heads(x.shape[1], len(rates), classes, x.device)
    batch_size = min(batch_size, len(rows))
    # SGD is linear in the gradient: scaling a head's loss by its rate, with lr 1, trains it at that rate.
    scale = torch.tensor(rates, device=x.device) * (batch_size / 256)
    optimizer = torch.optim.SGD(heads.parameters(), lr=1.0, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    epoch_steps = len(rows) // batch_size  # the last, incomplete batch is dropped
    for step in range(steps):
        if step % epoch_steps == 0:
            permutation = np.random.default_rng([seed, _PERMUTATION, step // epoch_steps]).permutation(len(rows))
            order = rows[torch.from_numpy(permutation).to(rows.device)]
        batch = order[step % epoch_steps * batch_size :][:batch_size]
        logits, targets = heads(x[batch]), y[batch].repeat_interleave(len(rates))
        losses = cross_entropy(logits.flatten(0, 1), targets, reduction="none").view(-1, len(rates)).mean(dim=0)
        optimizer.zero_grad()
        (losses * scale).sum().backward()
        optimizer.step()
        schedule.step()
    return heads


def _held_out(y: Tensor, seed: int) -> Tensor:
    """A mask (N,) of the held-out samples: a tenth of each class, at least one unless it has a single sample."""
    counts = y.bincount()
    wanted = torch.where(counts > 1, (counts + _HELD_OUT - 1) // _HELD_OUT, 0)
    return torch.from_numpy(ranks_in_class(y, [seed, _HOLD_OUT])).to(y.device) < wanted[y]


def _steps(samples: int, epochs: float | None, batch_size: int) -> int:
    batch_size = min(batch_size, samples)
    if epochs is None:
        return max(math.ceil(EPOCHS * samples / batch_size), _MIN_STEPS)
    return max(1, math.ceil(epochs * samples / batch_size))
