"""The picture of `mimcl plan`: effective fraction, temperature and images seen over the epochs."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator, PercentFormatter

from mimcl.cli.console import format_epochs
from mimcl.cli.plan.planned_run import PlannedRun

WIDTH, HEIGHT, DPI = 11.0, 3.9, 140  # inches, dots per inch
_COLOURS = ("#1f5f8b", "#c8553d", "#3c8d5a", "#8a5fa8", "#b0872b", "#5b6770")


def draw_picture(plans: Sequence[PlannedRun]) -> bytes:
    """Draw the plans as PNG, see `plan_figure`."""
    file = io.BytesIO()
    plan_figure(plans).savefig(file, format="png", dpi=DPI)
    return file.getvalue()


def plan_figure(plans: Sequence[PlannedRun]) -> Figure:
    """Draw three panels over the epochs of the longest plan, a fourth if sides change, and a line for each plan."""
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    FigureCanvasAgg(figure)
    with_sides = any(planned.sides.changes for planned in plans)
    fraction, temperature, seen, *more = figure.subplots(1, 4 if with_sides else 3)
    taus: list[float] = []
    for number, planned in enumerate(plans):
        rows, style = planned.forecasts, {"color": _COLOURS[number % len(_COLOURS)], "linewidth": 1.8}
        ends = [(row.draw + row.window_draws) / planned.samples for row in rows]
        steps = [row.epoch for row in rows] + ends[-1:]
        fractions = [row.effective_fraction for row in rows]
        # A window's values are those of its first draw, up to the next window.
        fraction.plot(steps, fractions + fractions[-1:], label=planned.name, drawstyle="steps-post", **style)
        if finite := [row.temperature for row in rows if math.isfinite(row.temperature)]:
            until = [*steps[: len(finite)], ends[len(finite) - 1]]
            temperature.plot(until, finite + finite[-1:], drawstyle="steps-post", **style)
            taus += finite
        seen.plot([0.0, *ends], [0.0] + [row.coverage for row in rows], **style)
    _dress(fraction, "effective fraction r", "distinct images in N draws from N images")
    fraction.axhline(1 - math.exp(-1), color="0.6", linewidth=0.8, linestyle=":")
    fraction.text(0.01, 0.642, "uniform", fontsize=7, color="0.4", transform=fraction.get_yaxis_transform())
    fraction.set_ylim(0, 0.7)
    _dress(temperature, "temperature", "in units of distance, until draws are uniform")
    if taus:
        low, high = padded(min(taus), max(taus))
        temperature.set_yscale("log")
        temperature.set_ylim(low, high)
        temperature.yaxis.set_major_locator(FixedLocator(log_ticks(low, high)))
        temperature.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        temperature.yaxis.set_minor_locator(NullLocator())
    else:
        temperature.text(0.5, 0.5, "uniform throughout", transform=temperature.transAxes, ha="center", color="0.4")
        temperature.set_yticks([])
    _dress(seen, "images seen so far", "expected share of the data set")
    seen.set_ylim(0, 1.04)
    seen.yaxis.set_major_formatter(PercentFormatter(1))
    for axis in more:
        for number, planned in enumerate(plans):
            _draw_sides(axis, planned, _COLOURS[number % len(_COLOURS)])
        _dress(axis, "resolution", "side of the crops in pixels")
        axis.set_ylim(0, None)
    for axis in (fraction, temperature, seen, *more):
        axis.set_xlim(0, max(planned.draws / planned.samples for planned in plans))
    fraction.legend(fontsize=8, frameon=False, loc="lower right")
    figure.suptitle(_title(plans[0]), fontsize=10)
    return figure


def _draw_sides(axis: Axes, planned: PlannedRun, colour: str) -> None:
    stages = planned.sides.stages
    epochs = [stage.first_draw / planned.samples for stage in stages] + [planned.draws / planned.samples]
    sides = [stage.side for stage in stages]
    axis.plot(epochs, sides + sides[-1:], drawstyle="steps-post", color=colour, linewidth=1.8)


def _dress(axis: Axes, title: str, note: str) -> None:
    axis.set_title(title, fontsize=10)
    axis.set_ylabel(note, fontsize=8)
    axis.set_xlabel("epochs", fontsize=8)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def padded(low: float, high: float) -> tuple[float, float]:
    """Return the ends of a logarithmic axis with a margin around values from `low` to `high`, which may be equal."""
    margin = max((high / low) ** 0.06, 1.02) if high > 1.02 * low else 1.3
    return low / margin, high * margin


def log_ticks(low: float, high: float) -> list[float]:
    """Return three to ten round numbers on a logarithmic axis: powers of ten if it spans enough, else others."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for mantissas in ((1,), (1, 3), (1, 2, 5), range(1, 10)):
        ticks = [float(f"{m}e{power}") for power in range(first, last + 1) for m in mantissas]
        if len(ticks := [tick for tick in ticks if low <= tick <= high]) > 2:
            return ticks[:: -(-len(ticks) // 10)]
    return [float(tick) for tick in MaxNLocator(5).tick_values(low, high) if low <= tick <= high]


def _title(planned: PlannedRun) -> str:
    config = planned.config
    how = "" if config.curriculum.name == "none" else f", {config.curriculum.resampling}"
    return (
        f"{planned.samples:,} images, {format_epochs(config.trainer.epochs)}, batch {config.data.batch_size:,}{how}, "
        f"windows of {planned.window_length:,} draws"
    )
