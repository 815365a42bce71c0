"""Read evaluation results from lines of metrics.jsonl, and format them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

SPREAD, UNTRAINED = "_std", "untrained_"  # suffix of standard deviations, prefix of values of the untrained encoder
ONLINE = ("online_knn", "online_rank")  # evaluations made while training
_RANKS = ("rank_me", "lidar")  # effective numbers of dimensions; all other values are accuracies
_FOUND = ("values", "details")  # keys of the results; all other keys identify the evaluation


def latest_results(lines: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The evaluation lines; of an evaluation that was repeated, only the last one."""
    latest = {}
    for line in lines:
        if "evaluation" in line and isinstance(line.get("values"), dict):
            identity = {name: value for name, value in line.items() if name not in _FOUND}
            latest[json.dumps(identity, sort_keys=True)] = line
    return list(latest.values())


def is_share(name: str) -> bool:
    """Whether the value of this name is an accuracy, from 0 to 1, to be shown in percent."""
    return name.removeprefix(UNTRAINED) not in _RANKS


def format_value(name: str, value: float) -> str:
    """For example "46.8 %" for "nn", "35.1" for "rank_me"."""
    return f"{100 * value:.1f} %" if is_share(name) else f"{value:.1f}"


def format_results(values: Mapping[str, float]) -> str:
    """For example "nn 46.8 %, 1_shot 17.6 ± 2.8 %; untrained: nn 38.1 %, 1_shot 15.5 ± 1.4 %"."""
    trained = {name: value for name, value in values.items() if not name.startswith(UNTRAINED)}
    untrained = {name.removeprefix(UNTRAINED): values[name] for name in values if name.startswith(UNTRAINED)}
    return _format(trained) + (f"; untrained: {_format(untrained)}" if untrained else "")


def format_settings(settings: Mapping[str, Any]) -> str:
    """For example "k 20, pool mean"."""
    return ", ".join(
        f"{name} {' '.join(map(str, value)) if isinstance(value, list | tuple) else value}"
        for name, value in settings.items()
    )


def _format(values: Mapping[str, float]) -> str:
    spread = {name: f" ± {100 * values[name + SPREAD]:.1f} %" for name in values if name + SPREAD in values}
    return ", ".join(
        f"{name} {100 * value:.1f}{spread[name]}" if name in spread else f"{name} {format_value(name, value)}"
        for name, value in values.items()
        if not name.endswith(SPREAD)
    )
