"""What the page's charts show of one run: curves over the samples seen, and histograms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mimcl.cli.report.balance import ClassBalance
from mimcl.cli.report.curves import POINTS, Curve, as_json, shorten
from mimcl.cli.report.read import RunRecord, Table
from mimcl.cli.report.several import nn_curve

Format = Literal["number", "percent", "count", "exponent"]
XKind = Literal["samples", "time", "times drawn", "class"]

_CHUNK = 1 << 20  # images counted at once
_MOST_BARS = 50
_LOG_ABOVE = 30.0  # ratio of the largest to the smallest value
_KNOWN_FIGURES = {"loss", "lr", "grad_norm", "images_per_second", "data_wait", "nonfinite_steps"} | {
    "temperature",
    "effective_fraction",
}
_SHARES = {"hard_share", "ranking_accuracy", "mask_agreement", "teacher_momentum"}


@dataclass(frozen=True)
class Series:
    """A line, or bars, with what lies between `low` and `high` shaded."""

    label: str
    y: Sequence[float | int | None]
    low: Sequence[float | int | None] | None = None
    high: Sequence[float | int | None] | None = None
    group: int = 0  # of colours


@dataclass(frozen=True)
class Chart:
    """One card of the page. All series have the length of x."""

    title: str
    note: str
    x: Sequence[float | int | None]
    series: Sequence[Series]
    x_kind: XKind = "samples"
    y_format: Format = "number"
    log: bool = False
    bars: bool = False
    wide: bool = False
    points: bool = False  # few, so that each is marked
    names: Sequence[str] = field(default_factory=tuple)  # of the places on x, where they are classes
    whole: int | None = None  # of which counts are told as a share too

    def as_json(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "x": self.x,
            "xKind": self.x_kind,
            "yFormat": self.y_format,
            "log": self.log,
            "bars": self.bars,
            "points": self.points,
            "names": self.names,
            "whole": self.whole,
            "series": [
                {"label": s.label, "y": s.y, "low": s.low, "high": s.high, "group": s.group} for s in self.series
            ],
        }

    @property
    def summary(self) -> str:
        """For those who cannot see it."""
        parts = []
        for series in self.series:
            known = [value for value in series.y if value is not None]
            if known:
                parts.append(
                    f"{series.label} from {known[0]:.4g} to {known[-1]:.4g}, between {min(known):.4g} and "
                    f"{max(known):.4g}"
                )
        return f"{self.title}: " + "; ".join(parts)


def line(
    title: str,
    note: str,
    table: Table,
    names: dict[str, str],
    y_format: Format = "number",
    wide: bool = False,
    may_be_log: bool = False,
) -> Chart | None:
    """Columns of a table, by their labels in the chart, over the samples seen; None where there are no numbers."""
    there = {name: label for name, label in names.items() if table.has(name)}
    if not there:
        return None
    curves = [shorten(table.draw, table[name], POINTS) for name in there]
    series = [
        of_curve(label, curve, group) for group, (label, curve) in enumerate(zip(there.values(), curves, strict=True))
    ]
    log = may_be_log and all(_spans_orders(table[name]) for name in there)
    few = len(curves[0].x) <= 40
    return Chart(title, note, as_json(np.round(curves[0].x)), series, "samples", y_format, log, wide=wide, points=few)


def of_curve(label: str, curve: Curve, group: int) -> Series:
    """With its band where it has one."""
    if curve.low is None or curve.high is None:
        return Series(label, as_json(curve.y), group=group)
    return Series(label, as_json(curve.y), as_json(curve.low), as_json(curve.high), group)


def _spans_orders(values: NDArray[np.float64]) -> bool:
    known = values[np.isfinite(values)]
    return bool(len(known)) and known.min() > 0 and known.max() / known.min() > _LOG_ABOVE


def training_charts(run: RunRecord) -> list[Chart]:
    """Loss, learning rate, gradient norm, throughput, data-wait, skipped steps."""
    steps = run.steps
    charts = [
        line("Loss", "mean since the line before", steps, {"loss": "loss"}, wide=True),
        line("Learning rate", "", steps, {"lr": "lr"}, "exponent"),
        line("Gradient norm", "of single steps", steps, {"grad_norm": "norm"}, may_be_log=True),
        line("Throughput", "images a second", steps, {"images_per_second": "img/s"}),
        line("Data-wait", "share of the time spent waiting for data", steps, {"data_wait": "data-wait"}, "percent"),
    ]
    if np.nansum(steps["nonfinite_steps"]) > 0:
        skipped = {"nonfinite_steps": "steps"}
        charts.append(line("Steps skipped", "without a finite gradient, since the line before", steps, skipped))
    return [chart for chart in charts if chart]


def curriculum_charts(run: RunRecord) -> list[Chart]:
    """Temperature, effective fraction, coverage, repeats, distances, and what moves a learned temperature."""
    windows = run.windows
    terms = {"temperature_gradient_loss": "loss term", "temperature_gradient_entropy": "entropy term"}
    charts = [
        line("Temperature", "of the draws, in distances", windows, {"temperature": "temperature"}, may_be_log=True),
        line(
            "Effective fraction", "expected share of distinct images", windows, {"effective_fraction": "r"}, "percent"
        ),
        _distinct(run),
        line("Most repeats", "of any one image so far", windows, {"max_repeats": "draws"}, "count"),
        _distances(windows),
        line("Learned temperature", "the two terms of its gradient", windows, terms),
    ]
    return [chart for chart in charts if chart]


def _distinct(run: RunRecord) -> Chart | None:
    """Their number; their share where it is not known of how many."""
    windows, images = run.windows, run.images
    if images is None:
        return line(
            "Distinct images", "share drawn at least once: coverage", windows, {"coverage": "coverage"}, "percent"
        )
    counted = Table(windows.draw, {"distinct": np.round(windows["coverage"] * images)})
    note = f"drawn at least once, of {images:,}; as a share: coverage"
    chart = line("Distinct images", note, counted, {"distinct": "images"}, "count")
    return chart and replace(chart, whole=images)


def _distances(windows: Table) -> Chart | None:
    """The median between the quantiles; in a bucket of windows between the lowest q10 and the highest q90."""
    if not windows.has("distance_q50"):
        return None
    low, middle, high = (shorten(windows.draw, windows[f"distance_{q}"], POINTS) for q in ("q10", "q50", "q90"))
    lowest, highest = low.y if low.low is None else low.low, high.y if high.high is None else high.high
    series = [Series("median", as_json(middle.y), as_json(lowest), as_json(highest))]
    note = "to the own prototype: 10, 50 and 90 % quantiles"
    return Chart("Distance of drawn images", note, as_json(np.round(middle.x)), series, points=len(middle.x) <= 40)


def masking_charts(run: RunRecord) -> list[Chart]:
    """One for each figure of the masker's own."""
    charts = []
    for name in run.steps.columns:
        if name not in _KNOWN_FIGURES and name != "step":
            chart = line(
                name.replace("_", " "),
                "" if name != "ranking_accuracy" else "0.5 is chance",
                run.steps,
                {name: name.replace("_", " ")},
                "percent" if name in _SHARES else "number",
            )
            if chart:
                charts.append(chart)
    return charts


def evaluation_charts(run: RunRecord) -> list[Chart]:
    """Accuracies over the samples seen, of each protocol that was applied at two draws or more."""
    charts = []
    protocols = dict.fromkeys(line.protocol for line in run.evaluations)
    for protocol in protocols:
        lines = [line for line in run.evaluations if line.protocol == protocol]
        names = list(dict.fromkeys(name for line in lines for name in line.accuracies))
        if len(lines) < 2 or not names:
            continue
        draws = sorted({x for name in names for x in nn_curve(run, protocol, name)[0].tolist()})
        series = []
        for group, name in enumerate(names):
            x, y = nn_curve(run, protocol, name)
            by_draw = dict(zip(x.tolist(), y.tolist(), strict=True))
            values = as_json(np.array([by_draw.get(draw, np.nan) for draw in draws]))
            series.append(Series(name, values, group=group))
        title = f"Evaluation: {protocol[0]}"
        charts.append(
            Chart(title, "share that is right", as_json(np.array(draws)), series, "samples", "percent", points=True)
        )
    return charts


def draw_counts_chart(counts: NDArray[np.uint32]) -> Chart:
    """How many images were drawn how often; a bar stands for a number of draws, or for several where they are many."""
    least, most = int(counts.min()), int(counts.max())
    width = -(-(most - least + 1) // _MOST_BARS)
    bars = (most - least) // width + 1
    images = sum(
        np.bincount((counts[start : start + _CHUNK] - least) // width, minlength=bars)
        for start in range(0, len(counts), _CHUNK)
    )
    x = least + np.arange(len(images)) * width
    note = "images by number of draws" + (f", in steps of {width}" if width > 1 else "")
    return Chart(
        "Times drawn", note, x.tolist(), [Series("images", images.tolist())], "times drawn", "count", bars=True
    )


def balance_chart(balance: ClassBalance) -> Chart:
    """Draws of each class against its images, from the most preferred class to the least."""
    return Chart(
        "Class balance",
        "draws of a class against its share of the images; 1 is even",
        list(range(len(balance.names))),
        [Series("draws / images", as_json(balance.ratio))],
        "class",
        bars=len(balance.names) <= 60,
        names=[name if len(name) <= 60 else name[:59] + "…" for name in balance.names],
        wide=len(balance.names) > 60,
    )
