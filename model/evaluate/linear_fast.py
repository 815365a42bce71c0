"""A fast linear probe: one softmax layer on frozen features, all learning rates of a sweep trained together.

As in DINOv2 (Oquab et al. 2023, arXiv 2304.07193, section 7.1): features are computed once, without augmentation, and a
grid of learning rates is tried with SGD of momentum 0.9, without weight decay, the rate falling to 0 as a cosine. Ours
standardises the features, as MAE's linear probe does by a BatchNorm without affine part, and takes the rate that does
best on a held-out tenth of the train samples, where DINOv2 takes the best on val.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn.functional import cross_entropy

from mimcl.model.evaluate.samples import labelled, numbered, places

# Of a batch of 256: DINOv2's grid, and higher by 10.
RATES = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0)
EPOCHS, BATCH = 10.0, 512
_FEWEST_STEPS = 2000  # with fewer images the epochs become more
_HELD_OUT = 10  # one sample in so many of each class
_ROWS = 4096  # judged at a time
_PERMUTATION, _HOLD_OUT = 0, 1  # what random numbers are for


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
    """Yields ("linear", the share of val samples that get their own class), and what led to it.

    That is "learning_rate", of a batch of 256, "held_out", the share right of the held-out train samples at that rate,
    and "held_out_lowest", that of the sweep's worst rate. The val accuracy is of a layer trained on all train samples.

    `train` (N, D) and `val` (M, D) are features, computed on in float32; labels (N,) and (M,) are whole numbers, and
    samples with a negative one are left out. `epochs` None: 10, or as many as make 2,000 steps. Held-out samples and
    the order of batches are pure functions of the seed. ValueError where nothing can be learned.
    """
    if batch_size < 1 or (epochs is not None and epochs <= 0):
        raise ValueError(f"the batch size is {batch_size} and the epochs are {epochs}; both must be above 0")
    x, labels = labelled("train samples", train, train_labels, device)
    val_x, val_labels = labelled("val samples", val, val_labels, device)
    y, val_y, classes = numbered(labels, val_labels)
    variance, mean = torch.var_mean(x, dim=0, correction=0)
    for features in (x, val_x):  # in place: at ImageNet's size they are gigabytes
        features.sub_(mean).mul_((variance + 1e-6).rsqrt())
    held = _held_out(y, seed)
    steps = _steps(len(y), epochs, batch_size)
    if not held.any():
        raise ValueError("no class has two samples to learn from, so no learning rate can be chosen")
    heads = _trained(x, y, classes, (~held).nonzero().squeeze(1), rates, steps, batch_size, seed)
    found = _share_right(heads, x[held], y[held])
    best = int(found.argmax())  # of equal ones the lowest rate
    every = torch.arange(len(y), device=x.device)
    head = _trained(x, y, classes, every, rates[best : best + 1], steps, batch_size, seed)
    yield "linear", _share_right(head, val_x, val_y).item()
    yield "learning_rate", rates[best]
    yield "held_out", found[best].item()
    yield "held_out_lowest", found.min().item()


class _Heads(torch.nn.Module):
    """H layers as one matrix product, zero at first: (B, D) to (B, H, C)."""

    def __init__(self, width: int, heads: int, classes: int, device: torch.device) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(width, heads * classes, device=device))
        self.bias = torch.nn.Parameter(torch.zeros(heads * classes, device=device))
        self._shape = heads, classes

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight).unflatten(1, self._shape)


def _trained(
    x: Tensor, y: Tensor, classes: int, rows: Tensor, rates: Sequence[float], steps: int, batch_size: int, seed: int
) -> _Heads:
    """A head for each rate, trained on these rows (n,)."""
    heads = _Heads(x.shape[1], len(rates), classes, x.device)
    batch_size = min(batch_size, len(rows))
    # SGD is linear in the gradient: a head's loss times its rate, at rate 1, is the head at its rate.
    scale = torch.tensor(rates, device=x.device) * (batch_size / 256)
    optimizer = torch.optim.SGD(heads.parameters(), lr=1.0, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    each = len(rows) // batch_size  # steps of an epoch, whose rest is left out
    for step in range(steps):
        if step % each == 0:
            order = np.random.default_rng([seed, _PERMUTATION, step // each]).permutation(len(rows))
            order = rows[torch.from_numpy(order).to(rows.device)]
        batch = order[step % each * batch_size :][:batch_size]
        logits, targets = heads(x[batch]), y[batch].repeat_interleave(len(rates))
        losses = cross_entropy(logits.flatten(0, 1), targets, reduction="none").view(-1, len(rates)).mean(dim=0)
        optimizer.zero_grad()
        (losses * scale).sum().backward()
        optimizer.step()
        schedule.step()
    return heads


@torch.no_grad()
def _share_right(heads: _Heads, x: Tensor, y: Tensor) -> Tensor:
    """Of each head, (H,)."""
    right = sum(
        (heads(rows).argmax(dim=2) == truth[:, None]).sum(dim=0)
        for rows, truth in zip(x.split(_ROWS), y.split(_ROWS), strict=True)
    )
    return right.double() / len(y)


def _held_out(y: Tensor, seed: int) -> Tensor:
    """Which samples choose the rate, (N,): of each class a tenth, at least one of two or more."""
    counts = y.bincount()
    wanted = torch.where(counts > 1, (counts + _HELD_OUT - 1) // _HELD_OUT, 0)
    return torch.from_numpy(places(y, [seed, _HOLD_OUT])).to(y.device) < wanted[y]


def _steps(samples: int, epochs: float | None, batch_size: int) -> int:
    batch_size = min(batch_size, samples)
    if epochs is None:
        return max(math.ceil(EPOCHS * samples / batch_size), _FEWEST_STEPS)
    return max(1, math.ceil(epochs * samples / batch_size))
