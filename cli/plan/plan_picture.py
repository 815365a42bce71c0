"""The picture of `mimcl plan`: effective fraction, temperature and images seen over the epochs."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, PercentFormatter

from mimcl.cli.plan.planned_run import PlannedRun
from mimcl.curriculum.forecast import WindowForecast

WIDTH, HEIGHT, DPI = 11.0, 3.9, 140  # inches, dots per inch
_COLOURS = ("#1f5f8b", "#c8553d", "#3c8d5a", "#8a5fa8", "#b0872b", "#5b6770")


def draw_picture(plans: Sequence[PlannedRun]) -> bytes:
    """Draw three panels over the epochs, with a line for each plan, as PNG."""
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    FigureCanvasAgg(figure)
    fraction, temperature, seen = figure.subplots(1, 3)
    steps = {"drawstyle": "steps-post"}  # a window's temperature is that of its first draw
    for number, planned in enumerate(plans):
        rows, style = planned.forecasts, {"color": _COLOURS[number % len(_COLOURS)], "linewidth": 1.8}
        epochs = [row.epoch for row in rows]
        fraction.plot(epochs, [row.effective_fraction for row in rows], label=planned.name, **steps, **style)
        temperature.plot(*_finite(rows), **steps, **style)
        ends = [0.0] + [(row.draw + row.window_draws) / planned.samples for row in rows]
        seen.plot(ends, [0.0] + [row.coverage for row in rows], **style)
    _dress(fraction, "effective fraction r", "distinct images in N draws from N images")
    fraction.axhline(1 - math.exp(-1), color="0.6", linewidth=0.8, linestyle=":")
    fraction.text(0, 0.642, "uniform", fontsize=7, color="0.4")
    fraction.set_ylim(0, 0.7)
    _dress(temperature, "temperature", "in units of distance, until draws are uniform")
    if temperature.lines and any(len(line.get_xdata()) for line in temperature.lines):
        temperature.set_yscale("log")
        temperature.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        temperature.yaxis.set_minor_formatter(NullFormatter())
        temperature.set_xlim(fraction.get_xlim())
    else:
        temperature.text(0.5, 0.5, "uniform throughout", transform=temperature.transAxes, ha="center", color="0.4")
        temperature.set_yticks([])
    _dress(seen, "images seen so far", "expected share of the data set")
    seen.set_ylim(0, 1.04)
    seen.yaxis.set_major_formatter(PercentFormatter(1))
    fraction.legend(fontsize=8, frameon=False, loc="lower right")
    figure.suptitle(_title(plans[0]), fontsize=10)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI)
    return file.getvalue()


def _dress(axis: Axes, title: str, note: str) -> None:
    axis.set_title(title, fontsize=10)
    axis.set_ylabel(note, fontsize=8)
    axis.set_xlabel("epochs", fontsize=8)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def _finite(rows: Sequence[WindowForecast]) -> tuple[list[float], list[float]]:
    finite = [row for row in rows if math.isfinite(row.temperature)]
    return [row.epoch for row in finite], [row.temperature for row in finite]


def _title(planned: PlannedRun) -> str:
    config = planned.config
    how = "" if config.curriculum.name == "none" else f", {config.curriculum.resampling}"
    return (
        f"{planned.samples:,} images, {config.trainer.epochs:g} epochs, batch {config.data.batch_size:,}{how}, "
        f"windows of {planned.window_length:,} draws"
    )
