"""Several runs: which of them are seeds of one arm, and means with their spread."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from mimcl.cli.report.curves import Curve, shorten
from mimcl.cli.report.read import RunRecord
from mimcl.cli.run.folder import FREE
from mimcl.pipeline.files import DataError

Values = NDArray[np.float64]
Protocol = tuple[str, str, str]  # of Evaluation

CONFIDENCE = 0.95
_POINTS = 400  # of a mean curve
_MOST_NAMED = 4  # differing keys in a label


@dataclass(frozen=True)
class Summary:
    """Of n values, NaN left out: mean, standard deviation (n - 1), and the 95 % interval of the mean (Student t)."""

    n: int
    mean: float
    sd: float  # NaN below two values, as low and high
    low: float
    high: float


@dataclass(frozen=True)
class Arm:
    """Runs that differ in nothing but the seed."""

    label: str
    runs: list[RunRecord]


def summary(values: Sequence[float]) -> Summary:
    """Of one value a seed."""
    known = np.array([value for value in values if math.isfinite(value)])
    if not len(known):
        return Summary(0, *[math.nan] * 4)
    mean = float(known.mean())
    if len(known) == 1:
        return Summary(1, mean, *[math.nan] * 3)
    sd = float(known.std(ddof=1))
    half = float(stdtrit(len(known) - 1, 0.5 + CONFIDENCE / 2)) * sd / math.sqrt(len(known))
    return Summary(len(known), mean, sd, mean - half, mean + half)


def arms_of(runs: Sequence[RunRecord], labels: Sequence[str] | None = None) -> list[Arm]:
    """Runs with the same label, in order of their first; without labels those of one configuration and one data set.

    The seed makes no difference, and neither does what a run may change when it goes on, such as paths. Raises
    DataError for another number of labels than runs.
    """
    if labels is None:
        labels = _labels(runs)
    if len(labels) != len(runs):
        raise DataError(f"{len(labels)} labels for {len(runs)} runs; give one for each")
    arms: dict[str, list[RunRecord]] = {}
    for label, run in zip(labels, runs, strict=True):
        arms.setdefault(label, []).append(run)
    return [Arm(label, members) for label, members in arms.items()]


def data_sets(runs: Sequence[RunRecord]) -> list[str]:
    """Fingerprints of the indices that these runs were trained on, where they are known; each once."""
    return list(dict.fromkeys(mark for run in runs if (mark := run.marks.get("index"))))


def differences(runs: Sequence[RunRecord]) -> list[str]:
    """Keys whose values are not the same in all runs, but for the seed and for what is free."""
    keys = dict.fromkeys(key for run in runs for key in run.config)
    return [key for key in keys if key not in _IGNORED and len({repr(run.config.get(key)) for run in runs}) > 1]


_IGNORED = FREE | {"seed"}


def _labels(runs: Sequence[RunRecord]) -> list[str]:
    differing = differences(runs)
    indices = data_sets(runs)
    names = [key.rpartition(".")[2] for key in differing]
    labels: list[str] = []
    for run in runs:
        parts = [_named(key, run.config.get(key), names) for key in differing[:_MOST_NAMED]]
        if len(indices) > 1:
            parts.append(f"data {(run.marks.get('index') or 'unknown')[:6]}")
        labels.append(", ".join(parts) or _kind(run))
    # Where the first few keys do not tell arms apart, a number does.
    rest: dict[str, list[Any]] = {}
    for place, run in enumerate(runs):
        known = rest.setdefault(labels[place], [])
        others = [repr(run.config.get(key)) for key in differing]
        if others not in known:
            known.append(others)
        if number := known.index(others):
            labels[place] += f" ({number + 1})"
    return labels


def _named(key: str, value: Any, names: Sequence[str]) -> str:
    """For example "curriculum proto", "r0 0.3", or the whole key where its last word alone is not clear."""
    section, _, name = key.rpartition(".")
    if name == "name":
        return f"{section} {value}"
    return f"{name if names.count(name) == 1 else key} {value}"


def _kind(run: RunRecord) -> str:
    words = (run.config.get(key) for key in ("recipe", "curriculum.name", "masking.name"))
    return ", ".join(str(word) for word in words if word is not None) or run.name


def mean_curve(runs: Sequence[RunRecord], of: Callable[[RunRecord], tuple[Values, Values]]) -> Curve | None:
    """The mean over seeds where all of them have come, between the lowest and the highest seed: for the eye.

    `of` gives a run's x and y, x rising. A long curve is averaged over neighbours first; between its points it is
    straight. None where a seed has no point, or the seeds have nothing in common.
    """
    curves = []
    for run in runs:
        x, y = of(run)
        known = np.isfinite(x) & np.isfinite(y)
        if not known.any():
            return None
        curve = shorten(x[known], y[known], _POINTS)
        curves.append((curve.x, curve.y))
    together = on_one_grid(curves)
    if together is None:
        return None
    grid, values = together
    if len(runs) == 1:
        return Curve(grid, values[0])
    return Curve(grid, values.mean(axis=0), values.min(axis=0), values.max(axis=0))


def on_one_grid(curves: Sequence[tuple[Values, Values]]) -> tuple[Values, Values] | None:
    """All x from where the last curve begins to where the first ends, (points,), and y there, (curves, points).

    Curves are x, rising, and y, without gaps. Between their points they are straight. None where they have nothing in
    common.
    """
    first, last = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    if first > last:
        return None
    grid = np.unique(np.concatenate([x for x, _ in curves]))
    grid = grid[(grid >= first) & (grid <= last)]
    return grid, np.stack([np.interp(grid, x, y) for x, y in curves])


def nn_curve(run: RunRecord, protocol: Protocol, name: str = "nn") -> tuple[Values, Values]:
    """Draws and accuracies of one protocol; begins with the untrained encoder's where it was judged too."""
    lines = [line for line in run.evaluations if line.protocol == protocol and name in line.values]
    draws, values = [float(line.draw) for line in lines], [line.values[name] for line in lines]
    untrained = [line.values[f"untrained_{name}"] for line in lines if f"untrained_{name}" in line.values]
    if untrained and draws[0] > 0:
        draws, values = [0.0, *draws], [untrained[0], *values]
    return np.array(draws), np.array(values)


def nn_protocol(arms: Sequence[Arm]) -> Protocol | None:
    """The one that gives curves of nn, judged at two draws or more, to most runs, the first arm's among them.

    What was judged while training comes before what was judged afterwards.
    """
    points: dict[Protocol, dict[int, int]] = {}
    runs = [run for arm in arms for run in arm.runs]
    for place, run in enumerate(runs):
        for line in run.evaluations:
            if "nn" in line.values:
                of_run = points.setdefault(line.protocol, {})
                of_run[place] = of_run.get(place, 0) + 1
    enough = {protocol: {p for p, n in counts.items() if n >= 2} for protocol, counts in points.items()}
    usable = [protocol for protocol, places in enough.items() if places.issuperset(range(len(arms[0].runs)))]
    return max(usable, key=lambda p: (len(enough[p]), p[0] == "online_knn", sum(points[p].values())), default=None)
