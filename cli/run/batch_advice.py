"""Advice on a batch of most of the images, which leaves a run few steps, and a curriculum no windows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mimcl.cli.config import Config, flatten
from mimcl.cli.fitting import fitting_batch, fitting_epochs
from mimcl.cli.options import flags
from mimcl.cli.recipes import RECIPES
from mimcl.cli.run.device import has_cuda
from mimcl.cli.suggest import command, unless_default
from mimcl.pipeline.remote.urls import shown

_NO_FLAGS = {"recipe", "chosen_by_auto", "data.root"}


def batch_advice(config: Config, samples: int, processes: int = 1, out: Path | None = None) -> str | None:
    """Return a line with the command that trains with a smaller batch, into `out`; None where the batch fits.

    Epochs that are not the recipe's stay as they are.
    """
    smaller = smaller_batch(config, samples, config.group_size, processes)
    if smaller is None:
        return None
    own = flatten(RECIPES[config.recipe]())
    changed = {
        key: value for key, value in flatten(config).items() if value != own[key] and key not in {*_NO_FLAGS, *smaller}
    }
    data = unless_default(shown(config.data.root))
    words = command("train", recipe=config.recipe, data=data, **flags(changed | smaller), out=out)
    return f"{too_large(config, samples)}; one that fits: {words}"


def smaller_batch(config: Config, samples: int, group: int = 1, processes: int = 1) -> dict[str, Any] | None:
    """Return a batch that fits the data and epochs for it, by dotted key; None where the batch fits."""
    batch = config.data.batch_size
    fitting = fitting_batch(batch, samples, group, processes)
    if fitting >= batch or config.recipe not in RECIPES:
        return None
    epochs = config.trainer.epochs
    if epochs == RECIPES[config.recipe]().trainer.epochs:
        epochs = fitting_epochs(config.recipe, samples, fitting, has_cuda())
    return {"data.batch_size": fitting, "trainer.epochs": epochs}


def too_large(config: Config, samples: int) -> str:
    """Return the clause that says so, and how many steps an epoch has."""
    batch = config.data.batch_size
    return (
        f"batch {batch:,} is more than an eighth of the {samples:,} images, {max(samples / batch, 0.01):.2g} steps an "
        "epoch"
    )
