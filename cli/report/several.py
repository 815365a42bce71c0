"""Group runs into arms, and find the evaluation whose accuracy curves can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mimcl.cli.evaluate.results_file import ONLINE, UNTRAINED
from mimcl.cli.report.curves import Values
from mimcl.cli.report.run_record import EvaluationKey, RunRecord
from mimcl.cli.run.resumed_config import FREE
from mimcl.pipeline.files import DataError

_MAX_KEYS = 4  # differing keys in a label


@dataclass(frozen=True)
class Arm:
    """Runs that differ only in the seed."""

    label: str
    runs: list[RunRecord]


def arms_of(runs: Sequence[RunRecord], labels: Sequence[str] | None = None) -> list[Arm]:
    """Group runs by label, in order of first appearance; by default, by equal configuration and data.

    Seeds, and keys that may change when a run is resumed (such as paths), are not compared. Raises DataError if the
    number of labels differs from the number of runs.
    """
    if labels is None:
        labels = _labels(runs)
    if len(labels) != len(runs):
        raise DataError(f"{len(labels)} labels for {len(runs)} runs; give one --label for each run")
    arms: dict[str, list[RunRecord]] = {}
    for label, run in zip(labels, runs, strict=True):
        arms.setdefault(label, []).append(run)
    return [Arm(label, members) for label, members in arms.items()]


def data_fingerprints(runs: Sequence[RunRecord]) -> list[str]:
    """The distinct fingerprints of the indices that these runs were trained on, as far as known."""
    return list(dict.fromkeys(index for run in runs if (index := run.fingerprints.get("index"))))


def differing_keys(runs: Sequence[RunRecord]) -> list[str]:
    """The configuration keys whose values differ between runs, except the seed and keys that may change on resume."""
    keys = dict.fromkeys(key for run in runs for key in run.config)
    return [key for key in keys if key not in _IGNORED and len({repr(run.config.get(key)) for run in runs}) > 1]


_IGNORED = FREE | {"seed"}


def _labels(runs: Sequence[RunRecord]) -> list[str]:
    keys = differing_keys(runs)
    several_indices = len(data_fingerprints(runs)) > 1
    names = [key.rpartition(".")[2] for key in keys]
    labels: list[str] = []
    for run in runs:
        parts = [_key_and_value(key, run.config.get(key), names) for key in keys[:_MAX_KEYS]]
        if several_indices:
            parts.append(f"data {(run.fingerprints.get('index') or 'unknown')[:6]}")
        labels.append(", ".join(parts) or _default_label(run))
    # A number distinguishes arms that differ only in keys that the labels omit.
    seen: dict[str, list[Any]] = {}
    for place, run in enumerate(runs):
        known = seen.setdefault(labels[place], [])
        values = [repr(run.config.get(key)) for key in keys]
        if values not in known:
            known.append(values)
        if number := known.index(values):
            labels[place] += f" ({number + 1})"
    return labels


def _key_and_value(key: str, value: Any, names: Sequence[str]) -> str:
    """For example "curriculum proto" or "r0 0.3"; the whole key where its last part is ambiguous."""
    section, _, name = key.rpartition(".")
    if name == "name":
        return f"{section} {value}"
    return f"{name if names.count(name) == 1 else key} {value}"


def _default_label(run: RunRecord) -> str:
    words = (run.config.get(key) for key in ("recipe", "curriculum.name", "masking.name"))
    return ", ".join(str(word) for word in words if word is not None) or run.name


def accuracy_curve(run: RunRecord, key: EvaluationKey, name: str = "nn") -> tuple[Values, Values]:
    """Draws and values of one evaluation; starts with the untrained encoder's value at draw 0 if it is known."""
    lines = [line for line in run.evaluations if line.key == key and name in line.values]
    draws, values = [float(line.draw) for line in lines], [line.values[name] for line in lines]
    untrained = [line.values[UNTRAINED + name] for line in lines if UNTRAINED + name in line.values]
    if untrained and draws[0] > 0:
        draws, values = [0.0, *draws], [untrained[0], *values]
    return np.array(draws), np.array(values)


def curve_key(arms: Sequence[Arm], name: str = "nn") -> EvaluationKey | None:
    """The evaluation with a curve of `name` of two points or more for most runs, among them all of the first arm.

    Ties go to evaluations made while training, then to the one with the most points. None if there is none.
    """
    points: dict[EvaluationKey, dict[int, int]] = {}
    runs = [run for arm in arms for run in arm.runs]
    for place, run in enumerate(runs):
        for line in run.evaluations:
            if name in line.values:
                by_run = points.setdefault(line.key, {})
                by_run[place] = by_run.get(place, 0) + 1
    curves = {key: {place for place, n in counts.items() if n >= 2} for key, counts in points.items()}
    usable = [key for key, places in curves.items() if places.issuperset(range(len(arms[0].runs)))]
    return max(usable, key=lambda key: (len(curves[key]), key.name in ONLINE, sum(points[key].values())), default=None)
