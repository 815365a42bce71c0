"""In what a run is not its recipe, by somebody's choice."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mimcl.cli.config import Config, flatten
from mimcl.cli.recipes import RECIPES
from mimcl.cli.run.folder import resolve

# Where the data lies and how it is decoded: of the machine, whoever chose it.
_OF_THE_MACHINE = {"data.decode_threads", "data.decoder", "data.root"}


def chosen(config: Config, samples: int | None) -> dict[str, tuple[Any, Any]]:
    """Dotted keys in which a run's configuration is not its recipe's, with the recipe's value and the run's.

    The recipe is taken as it would be resolved for a run of this length on `samples` images (None: not known, and no
    length of a window is then a choice), its precision as on this machine. Empty where the recipe is not known.
    """
    if config.recipe not in RECIPES:
        return {}
    recipe = RECIPES[config.recipe]()
    as_long = replace(recipe, trainer=replace(recipe.trainer, epochs=config.trainer.epochs))
    window = recipe.curriculum.window or config.curriculum.window
    if samples is not None and recipe.curriculum.window is None:
        as_sliced = replace(recipe.curriculum, slice=config.curriculum.slice)
        window = as_sliced.window_length(samples, config.data.batch_size)
    left_open, had, has = flatten(recipe), flatten(resolve(as_long, window, config.data.decoder)), flatten(config)
    had["trainer.epochs"] = recipe.trainer.epochs
    return {
        key: (had[key], value)
        for key, value in has.items()
        if value not in (had[key], left_open[key]) and key not in _OF_THE_MACHINE
    }
