"""The key figures at the top of a run's page."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mimcl.cli.config import Config, override
from mimcl.cli.console import format_duration
from mimcl.cli.errors import ConfigError
from mimcl.cli.report import formatting
from mimcl.cli.report.run_record import RunRecord
from mimcl.cli.run.resolve import draws_of


@dataclass(frozen=True)
class Figure:
    """A number at the top of the page."""

    label: str
    value: str
    detail: str


def _total_draws(run: RunRecord) -> int | None:
    """Return the number of draws of the whole run; None if it is unknown."""
    if run.images is None:
        return None
    try:
        return draws_of(override(Config(), run.config), run.images)
    except ConfigError:
        return None


def key_figures(run: RunRecord) -> list[Figure]:
    """Return loss, accuracy, progress, throughput, data-wait and, if they were logged, the draws' coverage."""
    losses = run.steps["loss"]
    first = losses[np.isfinite(losses)][:1]
    return [
        Figure(
            "final loss", formatting.number(run.final_loss), f"from {formatting.number(first[0])}" if len(first) else ""
        ),
        *_accuracy(run),
        Figure("samples seen", formatting.short(run.draws), _progress(run)),
        Figure(
            "throughput",
            f"{formatting.number(run.throughput, 3)} img/s",
            f"{format_duration(run.seconds[-1])} of training",
        ),
        Figure("data-wait", formatting.percent(run.data_wait), "of the time spent waiting for data"),
        *_effective_fraction(run),
        *_distinct_images(run),
    ]


def _progress(run: RunRecord) -> str:
    if not run.images:
        return "samples"
    epochs = f"{run.draws / run.images:,.4g} epochs of {run.images:,} images"
    if not (total := _total_draws(run)):
        return epochs
    return epochs + (
        f", {formatting.percent(run.draws / total, 0)} of the run" if run.draws < total else ", the whole run"
    )


def _accuracy(run: RunRecord) -> list[Figure]:
    lines = [line for line in run.evaluations if "nn" in line.values]
    if not lines:
        return []
    line = max(lines, key=lambda line: (line.draw, line.key.name == "knn"))
    detail = f"at {formatting.short(line.draw)} samples"
    if "untrained_nn" in line.values:
        detail = f"untrained {formatting.percent(line.values['untrained_nn'])}; {detail}"
    return [Figure("nearest neighbour", formatting.percent(line.values["nn"]), detail)]


def _effective_fraction(run: RunRecord) -> list[Figure]:
    if not run.windows.has("effective_fraction"):
        return []
    fractions = run.windows["effective_fraction"]
    fractions = fractions[np.isfinite(fractions)]
    detail = "uniform draws; no data curriculum"
    if (name := run.config.get("curriculum.name")) != "none":
        detail = f"from {formatting.percent(fractions[0])}; {name}, {run.config.get('curriculum.temp_schedule')}"
    return [Figure("effective fraction", formatting.percent(fractions[-1]), detail)]


def _distinct_images(run: RunRecord) -> list[Figure]:
    if not run.windows.has("coverage"):
        return []
    coverage, repeats = run.windows["coverage"][-1], run.windows["max_repeats"][-1]
    details = [f"each drawn at most {repeats:,.0f} times"] if math.isfinite(repeats) else []
    value = formatting.percent(coverage)
    if run.images and math.isfinite(coverage):
        details.insert(0, f"{value} of {run.images:,}")
        value = f"{coverage * run.images:,.0f}"
    return [Figure("distinct images", value, "; ".join(details))]
