"""Evaluations as metrics.jsonl keeps them: which of its lines count, and what they say in words."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

SPREAD, UNTRAINED = "_std", "untrained_"  # what ends the name of a value's spread, and begins that of an untrained one
_DETAILS = ("values", "details")  # what an evaluation finds; all else in a line says of what


def last_of_each(lines: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The lines of evaluations; of several alike but for what was found, the last."""
    found = {}
    for line in lines:
        if "evaluation" in line and isinstance(line.get("values"), dict):
            asked = {name: value for name, value in line.items() if name not in _DETAILS}
            found[json.dumps(asked, sort_keys=True)] = line
    return list(found.values())


def shares_in_words(values: Mapping[str, float]) -> str:
    """For example "nn 46.8 %, 1_shot 17.6 ± 2.8 %; untrained: nn 38.1 %, 1_shot 15.5 ± 1.4 %"."""
    trained = {name: value for name, value in values.items() if not name.startswith(UNTRAINED)}
    untrained = {name.removeprefix(UNTRAINED): values[name] for name in values if name.startswith(UNTRAINED)}
    return _in_words(trained) + (f"; untrained: {_in_words(untrained)}" if untrained else "")


def settings_in_words(settings: Mapping[str, Any]) -> str:
    """For example "k 20, pool mean"."""
    return ", ".join(
        f"{name} {' '.join(map(str, value)) if isinstance(value, list | tuple) else value}"
        for name, value in settings.items()
    )


def _in_words(shares: Mapping[str, float]) -> str:
    return ", ".join(
        f"{name} {100 * share:.1f}" + (f" ± {100 * shares[name + SPREAD]:.1f} %" if name + SPREAD in shares else " %")
        for name, share in shares.items()
        if not name.endswith(SPREAD)
    )
