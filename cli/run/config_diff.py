"""Finds the configuration values of a run that differ from its recipe."""

from __future__ import annotations

from typing import Any

from mimcl.cli.config import Config, flatten, override
from mimcl.cli.recipes import RECIPES
from mimcl.cli.run.resolve import RESOLVED, draws_of, resolve

# Where the data lies and how it is decoded depends on the machine.
_OF_THE_MACHINE = {"data.decode_threads", "data.decoder", "data.root"}
_OF_THE_SAMPLES = {"curriculum.window", "trainer.keep_every_steps"}  # derived from how many there are


def config_diff(config: Config, samples: int | None) -> dict[str, tuple[Any, Any]]:
    """Return the dotted keys in which a run's configuration differs from its recipe's, with both values: (recipe, run).

    A value is not a difference if --recipe auto chose it, or if the recipe's would have become the same in this run: on
    this machine, with `samples` images and all its other values. Where `samples` is None (unknown), values derived from
    it are not differences. Empty for an unknown recipe.
    """
    if config.recipe not in RECIPES:
        return {}
    of_recipe, of_run = flatten(RECIPES[config.recipe]()), flatten(config)
    ignored = _OF_THE_MACHINE | {"chosen_by_auto"} | config.auto_keys
    if samples is None:
        ignored |= _OF_THE_SAMPLES
    resolved = {key: _resolved(config, key, of_recipe[key], samples) for key in RESOLVED - ignored}
    return {
        key: (resolved.get(key, of_recipe[key]), value)
        for key, value in of_run.items()
        if key not in ignored and value not in (of_recipe[key], resolved.get(key, of_recipe[key]))
    }


def _resolved(config: Config, key: str, value: Any, samples: int | None) -> Any:
    """Return what becomes of a value at `key`, all others being those of `config`."""
    wanted = override(config, {key: value})
    window, steps = wanted.curriculum.window, None
    if samples is not None:
        window = wanted.curriculum.window_length(samples, wanted.data.batch_size)
        steps = draws_of(wanted, samples) // wanted.data.batch_size
    return flatten(resolve(wanted, window, wanted.data.decoder, steps))[key]
