"""Batch sizes and lengths of runs that fit the data and the device."""

from __future__ import annotations

import math

from mimcl.cli.recipes import RECIPES
from mimcl.cli.run.sides import mean_gflop

_BATCHES_PER_EPOCH = 8  # at least
_LEAST_STEPS = 1000  # fewer teach a model little
_MOST_EPOCHS = 800  # as many as MAE's authors train
_MOST_GFLOP_ON_CPU = 1.3e6  # 2 to 3 hours on 2 cores


def fitting_batch(batch_size: int, samples: int, group: int = 1, processes: int = 1) -> int:
    """Return `batch_size`, or a smaller one if it is more than an eighth of the images.

    The smaller one is the largest power of two, times the draws that a masker groups and the number of processes, that
    is not more; but at least one group for each process.
    """
    smallest, largest = group * processes, min(batch_size, samples // _BATCHES_PER_EPOCH)
    if batch_size % group == 0 and smallest <= batch_size <= max(largest, 1):
        return batch_size
    return smallest << max((largest // smallest).bit_length() - 1, 0)


def fitting_epochs(recipe: str, samples: int, batch_size: int, cuda: bool) -> float:
    """Return a recipe's epochs, or more if they are too few steps, or fewer if a CPU would take too long."""
    config, needed = RECIPES[recipe](), _LEAST_STEPS * batch_size / samples
    epochs = config.trainer.epochs
    if epochs < needed:
        epochs = min(10 * math.ceil(needed / 10), _MOST_EPOCHS)
    if cuda:
        return epochs
    return min(epochs, float(f"{_MOST_GFLOP_ON_CPU / mean_gflop(config) / samples:.2g}"))
