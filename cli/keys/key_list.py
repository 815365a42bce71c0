"""The keys of the configurations that --set changes, read from their dataclasses."""

from __future__ import annotations

import json
import typing
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from fnmatch import fnmatchcase
from types import NoneType
from typing import Any

from mimcl.cli.config import Config
from mimcl.model.evaluate.finetune_config import FinetuneConfig

_TYPES = {int: "INT", float: "FLOAT", str: "TEXT", bool: "true|false", NoneType: "null"}


@dataclass(frozen=True)
class Key:
    """A key: what it takes, in words and as choices (none where any value may be), its default, unit and purpose."""

    key: str
    type: str
    choices: tuple[str, ...]
    default: Any
    unit: str | None
    help: str


def train_keys(config: Config = Config()) -> list[Key]:
    """Return the keys of a run's configuration, with the defaults of `config`."""
    return list(_keys(config))


def finetune_keys() -> list[Key]:
    """Return the keys of `mimcl eval finetune --set`, with the defaults for ViT-B."""
    return list(_keys(FinetuneConfig()))


def matching(keys: list[Key], pattern: str) -> list[Key]:
    """Return the keys that have `pattern` in their name, or match it if it has *, ? or [."""
    is_glob = any(character in pattern for character in "*?[")
    return [key for key in keys if (fnmatchcase(key.key, pattern) if is_glob else pattern in key.key)]


def _keys(config: Any, section: str = "") -> Iterator[Key]:
    hints = typing.get_type_hints(type(config), include_extras=True)
    for field in fields(config):
        default = getattr(config, field.name)
        if is_dataclass(default):
            yield from _keys(default, f"{field.name}.")
        else:
            kind, text, *unit = typing.get_args(hints[field.name])
            yield Key(section + field.name, _type(kind), _choices(kind), default, unit[0] if unit else None, text)


def _choices(kind: Any) -> tuple[str, ...]:
    if typing.get_origin(kind) is typing.Literal:
        return typing.get_args(kind)
    return ("true", "false") if kind is bool else ()


def _type(kind: Any) -> str:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return "|".join(arguments)
    if origin is tuple:
        return f"[{', '.join(map(_type, arguments))}]"
    return "|".join(map(_type, arguments)) if arguments else _TYPES[kind]


def shown(value: Any) -> str:
    """Return a value as --set takes it."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(shown, value))}]"
    if isinstance(value, float):
        return f"{value:g}"
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)
