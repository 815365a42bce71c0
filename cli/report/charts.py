"""Charts of one run: curves over the samples seen, and histograms."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mimcl.cli.evaluate.results_file import is_share
from mimcl.cli.report.balance import ClassBalance
from mimcl.cli.report.chart import Chart, Format, Series, series_of
from mimcl.cli.report.curves import POINTS, json_values, shorten
from mimcl.cli.report.run_record import RunRecord, Table
from mimcl.cli.report.several import accuracy_curve

_CHUNK = 1 << 20  # images counted at a time
_MAX_BARS = 50
_FEW = 40  # points that are marked
_LOG_ABOVE = 30.0  # ratio of largest to smallest value above which the y axis is logarithmic
_TRAINING = {"step", "loss", "lr", "grad_norm", "images_per_second", "data_wait", "nonfinite_steps"}
_RESOLUTION = {"image_size", "relative_cost"}
_CURRICULUM = {"temperature", "effective_fraction"}
_SHARES = {"hard_share", "ranking_accuracy", "mask_agreement", "teacher_momentum"}


def line(
    title: str,
    note: str,
    table: Table,
    names: dict[str, str],
    y_format: Format = "number",
    wide: bool = False,
    may_be_log: bool = False,
) -> Chart | None:
    """Plot columns of a table over the samples seen, named column: label; None if they have no numbers."""
    known = {name: label for name, label in names.items() if table.has(name)}
    if not known:
        return None
    curves = [shorten(table.draw, table[name], POINTS) for name in known]
    series = [
        series_of(label, curve, group) for group, (label, curve) in enumerate(zip(known.values(), curves, strict=True))
    ]
    log = may_be_log and all(_spans_orders(table[name]) for name in known)
    few = len(curves[0].x) <= _FEW
    return Chart(
        title, note, json_values(np.round(curves[0].x)), series, "samples", y_format, log, wide=wide, points=few
    )


def _spans_orders(values: NDArray[np.float64]) -> bool:
    known = values[np.isfinite(values)]
    return bool(len(known)) and known.min() > 0 and known.max() / known.min() > _LOG_ABOVE


def training_charts(run: RunRecord) -> list[Chart]:
    """Loss, learning rate, gradient norm, throughput, data-wait, skipped steps."""
    steps = run.steps
    charts = [
        line("Loss", "mean since the previous line", steps, {"loss": "loss"}, wide=True),
        line("Learning rate", "", steps, {"lr": "lr"}, "exponent"),
        line("Gradient norm", "of single steps", steps, {"grad_norm": "norm"}, may_be_log=True),
        line("Throughput", "images per second", steps, {"images_per_second": "img/s"}),
        line("Data-wait", "share of the time spent waiting for data", steps, {"data_wait": "data-wait"}, "percent"),
    ]
    if np.nansum(steps["nonfinite_steps"]) > 0:
        skipped = {"nonfinite_steps": "steps"}
        charts.append(line("Skipped steps", "gradient not finite; since the previous line", steps, skipped))
    sides = {"image_size": "side of the crops"}
    charts.append(line("Resolution", "side of the crops in pixels", steps, sides, "count"))
    return [chart for chart in charts if chart]


def curriculum_charts(run: RunRecord) -> list[Chart]:
    """Temperature, effective fraction, coverage, repeats, distances, and the gradient of a learned temperature."""
    windows = run.windows
    terms = {"temperature_gradient_loss": "loss term", "temperature_gradient_entropy": "entropy term"}
    charts = [
        line(
            "Temperature",
            "of the draws",
            windows,
            {"temperature": "temperature"},
            may_be_log=True,
        ),
        line(
            "Effective fraction", "expected share of distinct images", windows, {"effective_fraction": "r"}, "percent"
        ),
        _distinct_images(run),
        line("Most repeats", "of any image so far", windows, {"max_repeats": "draws"}, "count"),
        _distances(windows),
        line("Learned temperature", "the two terms of its gradient", windows, terms),
    ]
    return [chart for chart in charts if chart]


def _distinct_images(run: RunRecord) -> Chart | None:
    """The number of distinct images; their share if the total is unknown."""
    windows, images = run.windows, run.images
    if images is None:
        return line(
            "Distinct images", "share drawn at least once: coverage", windows, {"coverage": "coverage"}, "percent"
        )
    counted = Table(windows.draw, {"distinct": np.round(windows["coverage"] * images)})
    note = f"drawn at least once, of {images:,} images"
    chart = line("Distinct images", note, counted, {"distinct": "images"}, "count")
    return chart and replace(chart, whole=images)


def _distances(windows: Table) -> Chart | None:
    """The median within the 10 % and 90 % quantiles (the lowest and highest of several windows)."""
    if not windows.has("distance_q50"):
        return None
    low, middle, high = (shorten(windows.draw, windows[f"distance_{q}"], POINTS) for q in ("q10", "q50", "q90"))
    lowest, highest = low.y if low.low is None else low.low, high.y if high.high is None else high.high
    series = [Series("median", json_values(middle.y), json_values(lowest), json_values(highest))]
    note = "to the image's prototype: 10, 50 and 90 % quantiles"
    return Chart(
        "Distance of drawn images", note, json_values(np.round(middle.x)), series, points=len(middle.x) <= _FEW
    )


def masking_charts(run: RunRecord) -> list[Chart]:
    """One chart for each metric of the masker."""
    charts = []
    for name in run.steps.columns:
        if name not in _TRAINING | _CURRICULUM | _RESOLUTION:
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
    """Accuracies or ranks over the samples seen, for each evaluation made at two draws or more."""
    charts = []
    for key in dict.fromkeys(line.key for line in run.evaluations):
        lines = [line for line in run.evaluations if line.key == key]
        names = list(dict.fromkeys(name for line in lines for name in line.accuracies))
        if len(lines) < 2 or not names:
            continue
        draws = sorted({x for name in names for x in accuracy_curve(run, key, name)[0].tolist()})
        series = []
        for group, name in enumerate(names):
            x, y = accuracy_curve(run, key, name)
            by_draw = dict(zip(x.tolist(), y.tolist(), strict=True))
            values = json_values(np.array([by_draw.get(draw, np.nan) for draw in draws]))
            series.append(Series(name, values, group=group))
        title, shares = f"Evaluation: {key.name}", is_share(names[0])
        note = "share of correct predictions" if shares else "effective number of dimensions"
        y_format: Format = "percent" if shares else "number"
        charts.append(Chart(title, note, json_values(np.array(draws)), series, "samples", y_format, points=True))
    return charts


def draw_counts_chart(counts: NDArray[np.uint32]) -> Chart:
    """Histogram of how often images were drawn, with at most 50 bars."""
    least, most = int(counts.min()), int(counts.max())
    width = -(-(most - least + 1) // _MAX_BARS)
    bars = (most - least) // width + 1
    images = np.zeros(bars, np.int64)
    for start in range(0, len(counts), _CHUNK):
        images += np.bincount((counts[start : start + _CHUNK] - least) // width, minlength=bars)
    x = least + np.arange(bars) * width
    note = "images by number of draws" + (f", in steps of {width}" if width > 1 else "")
    return Chart(
        "Times drawn", note, x.tolist(), [Series("images", images.tolist())], "times drawn", "count", bars=True
    )


def balance_chart(balance: ClassBalance) -> Chart:
    """Each class's share of the draws divided by its share of the images, in falling order."""
    return Chart(
        "Class balance",
        "share of the draws / share of the images; 1 is balanced",
        list(range(len(balance.names))),
        [Series("draws / images", json_values(balance.ratio))],
        "class",
        bars=len(balance.names) <= 60,
        names=[name if len(name) <= 60 else name[:59] + "…" for name in balance.names],
        wide=len(balance.names) > 60,
    )
