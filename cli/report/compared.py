"""Tables and charts that compare arms: measurements over seeds, and mean curves by samples seen and by time."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mimcl.cli.evaluate.results_file import is_share
from mimcl.cli.report.chart import Chart, Format, XKind, series_of
from mimcl.cli.report.curves import Curve, Values, json_values, mean_curve
from mimcl.cli.report.run_record import EvaluationKey, RunRecord
from mimcl.cli.report.several import Arm, accuracy_curve, curve_key
from mimcl.cli.report.statistics import Summary, summarize

_MAX_POINTS = 1200  # of a chart
_FEW = 40  # points that are marked
_TITLES = {"rank_me": "RankMe, dimensions", "lidar": "LiDAR, dimensions"}


@dataclass(frozen=True)
class ArmRow:
    """An arm's row of a measurement: one value per seed, NaN where it is missing."""

    label: str
    group: int  # colour
    values: list[float]
    summary: Summary
    draws: list[int]  # distinct draws at which the values were measured


@dataclass(frozen=True)
class Measurement:
    """A number by which arms are compared."""

    title: str
    detail: str
    is_share: bool  # shown in percent
    rows: list[ArmRow]

    @property
    def extent(self) -> tuple[float, float]:
        """The lowest and highest of all values and intervals, with a margin; of shares at most 0 to 1."""
        ends = [v for row in self.rows for v in (*row.values, row.summary.low, row.summary.high) if math.isfinite(v)]
        low, high = (min(ends), max(ends)) if ends else (0.0, 1.0)
        margin = 0.06 * (high - low) or 0.01
        low, high = low - margin, high + margin
        return (max(low, 0.0), min(high, 1.0)) if self.is_share else (low, high)

    def position(self, value: float) -> float:
        """The position in the dot plot, 0 to 100; an interval may end beyond it."""
        low, high = self.extent
        return min(100.0, max(0.0, round(100 * (value - low) / (high - low), 2)))


def measurements(arms: Sequence[Arm]) -> list[Measurement]:
    """Return the final loss, and every value of every evaluation at the last draw where a run has it.

    Evaluations with different settings or data are separate measurements, never averaged.
    """
    losses = [_row(arm, group, [(run.final_loss, run.draws) for run in arm.runs]) for group, arm in enumerate(arms)]
    found = [Measurement("final loss", "mean over the steps of the last logged line", False, losses)]
    last = {id(run): run.last_evaluations() for arm in arms for run in arm.runs}
    keys = dict.fromkeys(line.key for arm in arms for run in arm.runs for line in run.evaluations)
    for key in sorted(keys, key=lambda key: key.name):
        for name in dict.fromkeys(name for lines in last.values() if key in lines for name in lines[key].values):
            rows = []
            for group, arm in enumerate(arms):
                lines = [last[id(run)].get(key) for run in arm.runs]
                seeds = [(line.values.get(name, math.nan), line.draw) if line else (math.nan, None) for line in lines]
                rows.append(_row(arm, group, seeds))
            title = f"{key.name}: {name.replace('_', ' ')}" if name != key.name else name
            found.append(Measurement(title, describe_settings(key), is_share(name), rows))
    return found


def _row(arm: Arm, group: int, seeds: Sequence[tuple[float, int | None]]) -> ArmRow:
    values = [value for value, _ in seeds]
    draws = sorted({draw for value, draw in seeds if draw is not None and math.isfinite(value)})
    return ArmRow(arm.label, group, values, summarize(values), draws)


def describe_settings(key: EvaluationKey) -> str:
    """Return an evaluation's settings, and the first digits of the data's fingerprint."""
    words = [f"{name} {_format(value)}" for name, value in json.loads(key.settings).items()]
    if key.index:
        words.append(f"data {key.index[:6]}")
    return ", ".join(words)


def _format(value: object) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else json.dumps(value)


def compared_charts(arms: Sequence[Arm]) -> list[Chart]:
    """Return each quantity's mean over seeds, by samples seen and by time."""
    charts = _by_samples_and_time(
        arms,
        "Loss",
        "reconstruction loss",
        "Lower is better only between arms that draw alike: an arm that draws easier images has a lower loss without "
        "having learned more.",
        _steps("loss"),
    )
    for names, explanation in (
        (("nn", "knn"), "Higher is better: where bands overlap, arms differ no more than their seeds do."),
        (("rank_me", "lidar"), "How many dimensions the features use: a fall towards 1 is a sign of collapse."),
    ):
        if key := curve_key(arms, names[0]):
            note = ", ".join(part for part in (key.name, describe_settings(key)) if part)
            for name in names:
                y_format: Format = "percent" if is_share(name) else "number"
                title = _TITLES.get(name, f"{name} accuracy")
                charts += _by_samples_and_time(arms, title, note, explanation, _accuracy(key, name), y_format)
    charts += _by_samples_and_time(
        arms,
        "Effective fraction",
        "expected share of distinct images in an epoch",
        "How much of the data each arm draws from at a time: 63.2 % is uniform.",
        _windows("effective_fraction"),
        "percent",
    )
    return charts + _by_samples_and_time(
        arms,
        "Throughput",
        "images per second",
        "How fast each arm trained: unequal lines mean that equal samples took unequal time.",
        _steps("images_per_second"),
    )


_CurveOf = Callable[[RunRecord], tuple[Values, Values]]


def _steps(name: str) -> _CurveOf:
    return lambda run: (run.steps.draw.astype(np.float64), run.steps[name])


def _windows(name: str) -> _CurveOf:
    return lambda run: (run.windows.draw.astype(np.float64), run.windows[name])


def _accuracy(key: EvaluationKey, name: str) -> _CurveOf:
    return lambda run: accuracy_curve(run, key, name)


def _by_samples_and_time(
    arms: Sequence[Arm], title: str, note: str, explanation: str, curve_of: _CurveOf, y_format: Format = "number"
) -> list[Chart]:
    def by_time(run: RunRecord) -> tuple[Values, Values]:
        draws, values = curve_of(run)
        return run.seconds_at(draws), values

    texts = title, note, explanation
    by_samples = [mean_curve([curve_of(run) for run in arm.runs]) for arm in arms]
    in_time = [mean_curve([by_time(run) for run in arm.runs]) for arm in arms]
    charts = [_chart(arms, texts, "samples", y_format, by_samples), _chart(arms, texts, "time", y_format, in_time)]
    return [chart for chart in charts if chart]


def _chart(
    arms: Sequence[Arm], texts: tuple[str, str, str], x_kind: XKind, y_format: Format, curves: Sequence[Curve | None]
) -> Chart | None:
    """Draw all arms' curves, interpolated linearly on the union of their x."""
    known = [curve for curve in curves if curve is not None]
    if not known:
        return None
    x = np.unique(np.concatenate([curve.x for curve in known]))
    # Mark points only if they are those of every curve.
    few = len(x) <= _FEW and all(np.array_equal(curve.x, x) for curve in known)
    if len(x) > _MAX_POINTS:
        x = x[np.unique(np.linspace(0, len(x) - 1, _MAX_POINTS).astype(np.int64))]
    series = [
        series_of(arm.label, _interpolated(curve, x), group)
        for group, (arm, curve) in enumerate(zip(arms, curves, strict=True))
        if curve is not None
    ]
    shown_x = json_values(np.round(x) if x_kind == "samples" else x)
    return Chart(*texts, shown_x, series, x_kind, y_format, points=few)


def _interpolated(curve: Curve, x: Values) -> Curve:
    def at(y: Values) -> Values:
        return np.interp(x, curve.x, y, left=np.nan, right=np.nan)

    low, high = (None if y is None else at(y) for y in (curve.low, curve.high))
    return Curve(x, at(curve.y), low, high)
