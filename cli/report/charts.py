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
_ACCURACY: tuple[str, str, Format] = (
    "share of correct predictions",
    "How well the frozen encoder's features separate classes: it should rise during training.",
    "percent",
)
_RANK: tuple[str, str, Format] = (
    "effective number of dimensions",
    "How many dimensions the features use: it should rise; a fall towards 1 is a sign of collapse.",
    "number",
)
BALANCE_EXPLAINED = (
    "Which classes were drawn more (above 1) or less often than their number of images; a wide spread means that the "
    "curriculum prefers some classes."
)


def line(
    title: str,
    note: str,
    explanation: str,
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
    x = json_values(np.round(curves[0].x))
    log = may_be_log and all(_spans_orders(table[name]) for name in known)
    few = len(curves[0].x) <= _FEW
    return Chart(title, note, explanation, x, series, "samples", y_format, log, wide=wide, points=few)


def _spans_orders(values: NDArray[np.float64]) -> bool:
    known = values[np.isfinite(values)]
    return bool(len(known)) and known.min() > 0 and known.max() / known.min() > _LOG_ABOVE


def training_charts(run: RunRecord) -> list[Chart]:
    """Loss, learning rate, gradient norm, throughput, data-wait, skipped steps."""
    steps = run.steps
    charts = [
        line(
            "Loss",
            "mean since the previous line",
            "How far predicted patches are from the true ones (mean squared error): it should fall fast and then level "
            "off; a curriculum may raise it as it adds harder images.",
            steps,
            {"loss": "loss"},
            wide=True,
        ),
        line(
            "Learning rate",
            "after each step",
            "How far a step moves the weights: it should rise during the warm-up and then fall along a cosine.",
            steps,
            {"lr": "lr"},
            "exponent",
        ),
        line(
            "Gradient norm",
            "of single steps",
            "How steep the loss is: it should settle; jumps to ten times its level are a sign of instability.",
            steps,
            {"grad_norm": "norm"},
            may_be_log=True,
        ),
        line(
            "Throughput",
            "images per second",
            "How fast the run trained: it should stay level, except where the size of the crops changes.",
            steps,
            {"images_per_second": "img/s"},
        ),
        line(
            "Data-wait",
            "share of the time spent waiting for data",
            "How long training waited for images: above about 10 %, reading and decoding limit the speed.",
            steps,
            {"data_wait": "data-wait"},
            "percent",
        ),
        line(
            "Resolution",
            "side of the crops in pixels",
            "How large the crops were: smaller ones make steps faster.",
            steps,
            {"image_size": "side of the crops"},
            "count",
        ),
    ]
    if np.nansum(steps["nonfinite_steps"]) > 0:
        explanation = (
            "Steps that changed nothing, because a gradient was infinite or not a number: more than a few are a "
        )
        explanation += "sign of a learning rate that is too high."
        charts.append(
            line("Skipped steps", "since the previous line", explanation, steps, {"nonfinite_steps": "steps"})
        )
    return [chart for chart in charts if chart]


def curriculum_charts(run: RunRecord) -> list[Chart]:
    """Temperature, effective fraction, coverage, repeats, distances, and the gradient of a learned temperature."""
    windows = run.windows
    charts = [
        line(
            "Temperature",
            "of the draws, in units of distance",
            "How selective the draws are: low, only the images that come first are drawn, high, all of them alike; the "
            "line ends where draws become uniform.",
            windows,
            {"temperature": "temperature"},
            may_be_log=True,
        ),
        line(
            "Effective fraction",
            "expected share of distinct images in an epoch",
            "How much of the data the temperature lets through: it should rise to 63.2 %, that of uniform draws.",
            windows,
            {"effective_fraction": "r"},
            "percent",
        ),
        _distinct_images(run),
        line(
            "Most repeats",
            "draws of the most repeated image so far",
            "How often the model saw the same image: uniform draws add one per epoch, selective draws add more.",
            windows,
            {"max_repeats": "draws"},
            "count",
        ),
        _distances(windows),
        line(
            "Learned temperature",
            "the two terms of its gradient",
            "What moves a learned temperature: it rests where the two terms cancel.",
            windows,
            {"temperature_gradient_loss": "loss term", "temperature_gradient_entropy": "entropy term"},
        ),
    ]
    return [chart for chart in charts if chart]


def _distinct_images(run: RunRecord) -> Chart | None:
    """The number of distinct images; their share if the total is unknown."""
    windows, images = run.windows, run.images
    explanation = "How much of the data the model has seen: by the end it should be nearly all of it."
    if images is None:
        return line(
            "Distinct images", "share drawn at least once", explanation, windows, {"coverage": "coverage"}, "percent"
        )
    counted = Table(windows.draw, {"distinct": np.round(windows["coverage"] * images)})
    note = f"drawn at least once, of {images:,} images"
    chart = line("Distinct images", note, explanation, counted, {"distinct": "images"}, "count")
    return chart and replace(chart, whole=images)


def _distances(windows: Table) -> Chart | None:
    """The median within the 10 % and 90 % quantiles (the lowest and highest of several windows)."""
    if not windows.has("distance_q50"):
        return None
    low, middle, high = (shorten(windows.draw, windows[f"distance_{q}"], POINTS) for q in ("q10", "q50", "q90"))
    lowest, highest = low.y if low.low is None else low.low, high.y if high.high is None else high.high
    return Chart(
        "Distance of drawn images",
        "median, and band of 80 % of the draws",
        "How far drawn images are from their prototype (0 = most typical): it should rise in a curriculum from typical "
        "to atypical images, and fall in the reverse one.",
        json_values(np.round(middle.x)),
        [Series("median", json_values(middle.y), json_values(lowest), json_values(highest))],
        points=len(middle.x) <= _FEW,
    )


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
        note, explanation, y_format = _ACCURACY if is_share(names[0]) else _RANK
        title = f"Evaluation: {key.name}"
        charts.append(
            Chart(title, note, explanation, json_values(np.array(draws)), series, "samples", y_format, points=True)
        )
    return charts


def draw_counts_chart(counts: NDArray[np.uint32]) -> Chart:
    """Histogram of how often images were drawn, with at most 50 bars."""
    least, most = int(counts.min()), int(counts.max())
    width = -(-(most - least + 1) // _MAX_BARS)
    bars = (most - least) // width + 1
    images = np.zeros(bars, np.int64)
    for start in range(0, len(counts), _CHUNK):
        images += np.bincount((counts[start : start + _CHUNK] - least) // width, minlength=bars)
    return Chart(
        "Times drawn",
        "images by number of draws" + (f", in steps of {width}" if width > 1 else ""),
        "How evenly the images were used: uniform draws make one narrow peak; a curriculum has a tail to the right, of "
        "the images that it drew more often.",
        (least + np.arange(bars) * width).tolist(),
        [Series("images", images.tolist(), bars=True)],
        "times drawn",
        "count",
    )


def balance_chart(balance: ClassBalance) -> Chart:
    """Each class's share of the draws divided by its share of the images, in falling order."""
    few = len(balance.names) <= 60
    return Chart(
        "Class balance",
        "share of the draws / share of the images, by class",
        BALANCE_EXPLAINED,
        list(range(len(balance.names))),
        [Series("draws / images", json_values(balance.ratio), bars=few)],
        "class",
        names=[name if len(name) <= 60 else name[:59] + "…" for name in balance.names],
        wide=not few,
    )
