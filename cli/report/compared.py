"""What the page shows of several runs: tables over seeds, dot plots, and curves by samples seen and by wall time."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mimcl.cli.report.charts import Chart, Format, Series, XKind, of_curve
from mimcl.cli.report.curves import Curve, as_json
from mimcl.cli.report.read import RunRecord
from mimcl.cli.report.several import Arm, Protocol, Summary, mean_curve, nn_curve, nn_protocol, summary

Values = NDArray[np.float64]


@dataclass(frozen=True)
class ArmRow:
    """An arm's part of a measurement: each seed's value, NaN where there is none."""

    label: str
    group: int  # of colours
    values: list[float]
    found: Summary
    draws: list[int]  # at which the values were measured, each once


@dataclass(frozen=True)
class Measurement:
    """One number by which arms are compared."""

    title: str
    detail: str
    share: bool  # shown in percent
    rows: list[ArmRow]

    @property
    def extent(self) -> tuple[float, float]:
        """The lowest and the highest of all values and intervals, with some air."""
        ends = [v for row in self.rows for v in (*row.values, row.found.low, row.found.high) if math.isfinite(v)]
        low, high = (min(ends), max(ends)) if ends else (0.0, 1.0)
        air = 0.06 * (high - low) or 0.01
        return low - air, high + air

    def place(self, value: float) -> float:
        """On the dot plot, 0 to 100."""
        low, high = self.extent
        return round(100 * (value - low) / (high - low), 2)


def measurements(arms: Sequence[Arm]) -> list[Measurement]:
    """The final loss, and every value of every protocol at the last draw where a run was judged by it.

    Never a mean over different settings or different data: they are measurements of their own.
    """
    losses = [_row(arm, place, [(run.final_loss, run.draws) for run in arm.runs]) for place, arm in enumerate(arms)]
    found = [Measurement("final loss", "mean since the line before the last", False, losses)]
    runs = [run for arm in arms for run in arm.runs]
    protocols = dict.fromkeys(line.protocol for run in runs for line in run.evaluations)
    for protocol in sorted(protocols, key=lambda p: p[0]):
        names = dict.fromkeys(name for run in runs for name in _last(run, protocol))
        for name in names:
            rows = []
            for place, arm in enumerate(arms):
                seeds = []
                for run in arm.runs:
                    line = run.last_evaluations().get(protocol)
                    seeds.append((line.values.get(name, math.nan), line.draw) if line else (math.nan, None))
                rows.append(_row(arm, place, seeds))
            title = f"{protocol[0]}: {name.replace('_', ' ')}" if name != protocol[0] else name
            found.append(Measurement(title, describe(protocol), True, rows))
    return found


def _last(run: RunRecord, protocol: Protocol) -> dict[str, float]:
    line = run.last_evaluations().get(protocol)
    return line.values if line else {}


def _row(arm: Arm, group: int, seeds: Sequence[tuple[float, int | None]]) -> ArmRow:
    values = [value for value, _ in seeds]
    draws = sorted({draw for value, draw in seeds if draw is not None and math.isfinite(value)})
    return ArmRow(arm.label, group, values, summary(values), draws)


def describe(protocol: Protocol) -> str:
    """Its settings, and the first digits of the data's fingerprint."""
    _, settings, index = protocol
    words = [f"{name} {_plain(value)}" for name, value in json.loads(settings).items()]
    if index:
        words.append(f"data {index[:6]}")
    return ", ".join(words)


def _plain(value: object) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else json.dumps(value)


def compared_charts(arms: Sequence[Arm]) -> list[tuple[str, list[Chart]]]:
    """For each quantity its mean over seeds by samples seen and by wall time."""
    protocol = nn_protocol(arms)
    groups = [_both(arms, "Loss", _steps("loss"))]
    if protocol:
        for name, title in (("nn", "nn accuracy"), ("knn", "knn accuracy")):
            note = f"{protocol[0]}, {describe(protocol)}".rstrip(", ")
            of = _accuracy(protocol, name)
            groups.append(_both(arms, title, of, "percent", note=note))
    groups.append(_both(arms, "Effective fraction", _windows("effective_fraction"), "percent"))
    groups.append(_both(arms, "Throughput", _steps("images_per_second"), note="images a second"))
    return [(charts[0].title, charts) for charts in groups if charts]


_Of = Callable[[RunRecord], tuple[Values, Values]]


def _steps(name: str) -> _Of:
    return lambda run: (run.steps.draw.astype(np.float64), run.steps[name])


def _windows(name: str) -> _Of:
    return lambda run: (run.windows.draw.astype(np.float64), run.windows[name])


def _accuracy(protocol: Protocol, name: str) -> _Of:
    return lambda run: nn_curve(run, protocol, name)


def _both(arms: Sequence[Arm], title: str, of: _Of, y_format: Format = "number", note: str = "") -> list[Chart]:
    def by_time(run: RunRecord) -> tuple[Values, Values]:
        draws, values = of(run)
        return run.seconds_at(draws), values

    charts = [
        _chart(arms, title, note, "samples", y_format, [mean_curve(arm.runs, of) for arm in arms]),
        _chart(arms, title, note, "time", y_format, [mean_curve(arm.runs, by_time) for arm in arms]),
    ]
    return [chart for chart in charts if chart]


def _chart(
    arms: Sequence[Arm], title: str, note: str, x_kind: XKind, y_format: Format, curves: Sequence[Curve | None]
) -> Chart | None:
    """All arms' curves over the x of all of them: between its own points a curve is a straight line."""
    known = [curve for curve in curves if curve is not None]
    if not known:
        return None
    x = np.unique(np.concatenate([curve.x for curve in known]))
    # Marks only where all curves have points of their own.
    few = len(x) <= 40 and all(np.array_equal(curve.x, x) for curve in known)
    if len(x) > 1200:
        x = x[np.unique(np.linspace(0, len(x) - 1, 1200).astype(np.int64))]
    series: list[Series] = []
    for group, (arm, curve) in enumerate(zip(arms, curves, strict=True)):
        if curve is not None:
            series.append(of_curve(arm.label, _resampled(curve, x), group))
    exact = as_json(np.round(x) if x_kind == "samples" else x)
    return Chart(title, note, exact, series, x_kind, y_format, points=few)


def _resampled(curve: Curve, x: Values) -> Curve:
    def at(y: Values | None) -> Values | None:
        return None if y is None else np.interp(x, curve.x, y, left=np.nan, right=np.nan)

    return Curve(x, at(curve.y), at(curve.low), at(curve.high))
