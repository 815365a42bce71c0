"""Curves for charts: shortened without losing extremes, and averaged over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
POINTS = 600  # of a curve in a chart
_MEAN_POINTS = 400  # of a mean curve
_DIGITS = 5  # significant digits, more than a screen shows


@dataclass(frozen=True)
class Curve:
    """Values y over x; `low` and `high` bound the values where a point stands for several."""

    x: Values
    y: Values
    low: Values | None = None
    high: Values | None = None


def shorten(x: Values | NDArray[np.int64], y: Values, points: int = POINTS) -> Curve:
    """Average (n,) values into `points` buckets of neighbours, each with its mean x, mean, lowest and highest value.

    Up to `points` values are returned unchanged. NaN is skipped; a bucket of nothing else stays NaN.
    """
    x = np.asarray(x, np.float64)
    if len(x) <= points:
        return Curve(x, y)
    starts = np.linspace(0, len(x), points, endpoint=False).astype(np.int64)
    finite = np.isfinite(y)
    counts = np.add.reduceat(finite.astype(np.int64), starts)
    with np.errstate(invalid="ignore"):
        mean = np.add.reduceat(np.where(finite, y, 0.0), starts) / counts
    mean_x = np.add.reduceat(x, starts) / np.diff(starts, append=len(x))
    return Curve(mean_x, mean, np.fmin.reduceat(y, starts), np.fmax.reduceat(y, starts))


def mean_curve(curves: Sequence[tuple[Values, Values]]) -> Curve | None:
    """Average the seeds' curves (x rising, y) over the x that all of them cover, within the band of all seeds.

    Long curves are shortened first. None if a seed has no finite point, or if the seeds have no x in common.
    """
    shortened = []
    for x, y in curves:
        finite = np.isfinite(x) & np.isfinite(y)
        if not finite.any():
            return None
        curve = shorten(x[finite], y[finite], _MEAN_POINTS)
        shortened.append((curve.x, curve.y))
    common = on_common_grid(shortened)
    if common is None:
        return None
    grid, values = common
    if len(curves) == 1:
        return Curve(grid, values[0])
    return Curve(grid, values.mean(axis=0), values.min(axis=0), values.max(axis=0))


def on_common_grid(curves: Sequence[tuple[Values, Values]]) -> tuple[Values, Values] | None:
    """Interpolate curves (x rising, y; no NaN) linearly on all x that they have in common.

    Returns the grid (points,) and the values (curves, points), or None if the curves do not overlap.
    """
    first, last = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    if first > last:
        return None
    grid = np.unique(np.concatenate([x for x, _ in curves]))
    grid = grid[(grid >= first) & (grid <= last)]
    return grid, np.stack([np.interp(grid, x, y) for x, y in curves])


def json_values(values: Values) -> list[float | int | None]:
    """Round values to 5 significant digits for JSON; NaN becomes None, whole numbers stay exact."""
    return [
        None if value != value else int(value) if value.is_integer() else float(f"{value:.{_DIGITS}g}")
        for value in values.tolist()
    ]
