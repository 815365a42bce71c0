"""A run's configuration compared with its recipe, and the command that trains it again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mimcl.cli.config import Config, as_yaml, flatten, override
from mimcl.cli.errors import ConfigError
from mimcl.cli.recipes import RECIPES
from mimcl.cli.run.config_diff import config_diff
from mimcl.cli.suggest import command

_OF_NO_RECIPE = ("recipe", "chosen_by_auto")


@dataclass(frozen=True)
class Setting:
    """A key and its value as YAML; `recipe` is the recipe's value if it differs."""

    section: str
    name: str
    value: str
    recipe: str | None
    chosen: bool  # whether the user chose the difference (mimcl did not derive it)


def settings(config: Mapping[str, Any], samples: int | None = None) -> list[Setting]:
    """Return all keys of a configuration, in its order; without differences if the recipe is unknown.

    samples: how many images the run draws from, if known.
    """
    base = _recipe(config)
    chosen_keys = _chosen_keys(config, samples)
    rows = []
    for key, value in config.items():
        section, _, name = key.rpartition(".")
        recipe = None
        if base is not None and key not in _OF_NO_RECIPE and (key in chosen_keys or _differs(base.get(key), value)):
            recipe = as_yaml(base.get(key))
        rows.append(Setting(section, name, as_yaml(value), recipe, key in chosen_keys))
    return rows


def _chosen_keys(config: Mapping[str, Any], samples: int | None) -> set[str]:
    try:
        return set(config_diff(override(Config(), config), samples))
    except ConfigError:  # written by another version
        return set()


def train_command_line(config: Mapping[str, Any]) -> str:
    """Return the command that trains this configuration, without --out."""
    base = _recipe(config)
    differing = [
        f"{key}={as_yaml(value)}"
        for key, value in config.items()
        if key not in _OF_NO_RECIPE and _differs((base or {}).get(key), value)
    ]
    return command("train", recipe=None if base is None else config["recipe"], set=differing)


def _recipe(config: Mapping[str, Any]) -> dict[str, Any] | None:
    name = config.get("recipe")
    if not isinstance(name, str) or name not in RECIPES:
        return None
    try:
        return flatten(RECIPES[name]())
    except (ConfigError, ValueError):
        return None


def _differs(one: Any, other: Any) -> bool:
    """Compare values; YAML turns tuples into lists."""
    return (list(one) if isinstance(one, tuple) else one) != other
