"""Finds the configuration values of a run that differ from its recipe."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mimcl.cli.config import Config, flatten
from mimcl.cli.recipes import RECIPES
from mimcl.cli.run.resolve import resolve

# Where the data lies and how it is decoded depends on the machine.
_OF_THE_MACHINE = {"data.decode_threads", "data.decoder", "data.root"}


def config_diff(config: Config, samples: int | None) -> dict[str, tuple[Any, Any]]:
    """Return the dotted keys in which a run's configuration differs from its recipe's, with both values: (recipe, run).

    The recipe is resolved as for a run of this length on `samples` images, and on this machine. Where `samples` is None
    (unknown), the length of a window is not a difference. Empty for an unknown recipe.
    """
    if config.recipe not in RECIPES:
        return {}
    recipe = RECIPES[config.recipe]()
    of_length, of_data = (
        replace(recipe.trainer, epochs=config.trainer.epochs),
        replace(recipe.data, root=config.data.root),
    )
    alike = replace(recipe, trainer=of_length, data=of_data)
    window = recipe.curriculum.window or config.curriculum.window
    if samples is not None and recipe.curriculum.window is None:
        as_sliced = replace(recipe.curriculum, slice=config.curriculum.slice)
        window = as_sliced.window_length(samples, config.data.batch_size)
    left_open, had, has = flatten(recipe), flatten(resolve(alike, window, config.data.decoder)), flatten(config)
    had["trainer.epochs"] = recipe.trainer.epochs
    return {
        key: (had[key], value)
        for key, value in has.items()
        if value not in (had[key], left_open[key]) and key not in _OF_THE_MACHINE
    }
