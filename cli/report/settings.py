"""A run's configuration as a table beside its recipe, and the command that trains it again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from mimcl.cli.config import Config, flatten, override
from mimcl.cli.errors import ConfigError
from mimcl.cli.recipes import RECIPES
from mimcl.cli.run.config_diff import config_diff


@dataclass(frozen=True)
class Setting:
    """A key with its value as YAML; `recipe` is the recipe's where that is another one."""

    section: str
    name: str
    value: str
    recipe: str | None
    chosen: bool  # it differs, and the program did not find it by itself


def settings(config: Mapping[str, Any], samples: int | None = None) -> list[Setting]:
    """All keys of a configuration, in its order; nothing is said to differ where the recipe is not known.

    `samples`: how many images the run draws from, where that is known.
    """
    base = _recipe(config)
    marked = _chosen(config, samples)
    rows = []
    for key, value in config.items():
        section, _, name = key.rpartition(".")
        recipe = None
        if base is not None and key != "recipe" and (key in marked or _differs(base.get(key), value)):
            recipe = as_yaml(base.get(key))
        rows.append(Setting(section, name, as_yaml(value), recipe, key in marked))
    return rows


def _chosen(config: Mapping[str, Any], samples: int | None) -> set[str]:
    try:
        return set(config_diff(override(Config(), config), samples))
    except ConfigError:  # of another version
        return set()


def command(config: Mapping[str, Any]) -> str:
    """The `mimcl train` that gives this configuration, but for the run's folder."""
    base = _recipe(config)
    words = ["mimcl", "train"]
    if base is not None:
        words += ["--recipe", str(config["recipe"])]
    for key, value in config.items():
        if key != "recipe" and _differs((base or {}).get(key), value):
            words += ["--set", f"{key}={as_yaml(value)}"]
    return shlex.join(words)


def _recipe(config: Mapping[str, Any]) -> dict[str, Any] | None:
    name = config.get("recipe")
    if not isinstance(name, str) or name not in RECIPES:
        return None
    try:
        return flatten(RECIPES[name]())
    except (ConfigError, ValueError):
        return None


def _differs(one: Any, other: Any) -> bool:
    """Tuples come back from YAML as lists."""
    return (list(one) if isinstance(one, tuple) else one) != other


def as_yaml(value: Any) -> str:
    """YAML in one line."""
    text = yaml.safe_dump(list(value) if isinstance(value, tuple) else value, default_flow_style=True, width=10**9)
    return text.removesuffix("\n").removesuffix("\n...")
