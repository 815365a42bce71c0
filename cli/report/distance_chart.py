"""Histogram of the images' distances, and how the draws of each window are distributed over it."""

from __future__ import annotations

import math

import numpy as np

from mimcl.cli.evenly_spaced import evenly_spaced
from mimcl.cli.report.chart import Chart, Frame, Series
from mimcl.cli.report.curves import Values, json_values
from mimcl.cli.report.formatting import number
from mimcl.cli.report.run_prototypes import RunPrototypes
from mimcl.cli.report.run_record import Table
from mimcl.curriculum.bins import Bins, count
from mimcl.curriculum.hardness import Hardness
from mimcl.curriculum.temperature import uniform_fraction

_BINS = 40  # of equal width, from 0 to 1
_FRAMES = 41  # windows that the slider can choose


def distance_chart(windows: Table, prototypes: RunPrototypes) -> Chart:
    """Plot images by distance as bars, and over them how many of as many draws each bin gets in some windows.

    Draws of a window follow softmax(-h / temperature) (with balance, within each cluster), h being the hardness. For
    uniform draws the lines follow the tops of the bars. Raises ValueError if all distances are equal.
    """
    curriculum, distance = prototypes.curriculum, prototypes.found.distance
    bins = count(Hardness(curriculum, distance), prototypes.balance)
    # h is the distance or 1 - distance: the same function gives the distance of h.
    place = np.clip((curriculum.hardness(bins.h) * _BINS).astype(np.int64), 0, _BINS - 1)
    images = [round(total) for total in np.bincount(place, bins.images, _BINS).tolist()]

    def draws(window: int) -> list[float | int | None]:
        p = _probabilities(bins, windows["temperature"][window], windows["effective_fraction"][window], len(distance))
        return json_values(np.asarray(len(distance) * np.bincount(place, p * bins.images, _BINS), np.float64))

    def described(window: int) -> str:
        tau = windows["temperature"][window]
        return "uniform draws" if math.isnan(tau) else f"temperature {number(tau, 2)}"

    last = len(windows) - 1
    frames = [
        Frame(f"{windows.draw[window]:,} samples, {described(window)}", draws(window))
        for window in evenly_spaced(last + 1, _FRAMES).tolist()
    ]
    series = [
        Series("images", images, bars=True),
        Series(f"start, {described(0)}", draws(0), group=2),
        Series(f"middle, {described(last // 2)}", draws(last // 2), group=4),
        Series(frames[-1].label, frames[-1].y, group=1),
    ]
    what = "score" if prototypes.scores else "distance to the own prototype"
    return Chart(
        "What the temperature lets through",
        f"bars: images by {what}; lines: expected draws, of {len(distance):,}; square-root axis",
        "Which images a temperature draws: more often than uniform draws where its line is above the bars, less often "
        "where it is below; as the temperature rises, lines should approach the tops of the bars. The slider moves the "
        "last line to another window.",
        json_values((np.arange(_BINS) + 0.5) / _BINS),
        series,
        "distance",
        "count",
        root=True,
        wide=True,
        whole=len(distance),
        frames=frames,
    )


def _probabilities(bins: Bins, temperature: float, fraction: float, samples: int) -> Values:
    """Return each image's probability by its bin, in a window of this temperature (NaN: infinite) and r.

    Infinite are the uniform phase and, with balance, also the end of the curriculum; their r differ.
    """
    if math.isnan(temperature) and math.isclose(fraction, uniform_fraction(samples), rel_tol=1e-9):
        return np.full(len(bins.images), 1 / samples)
    return bins.probabilities(math.inf if math.isnan(temperature) else temperature)
