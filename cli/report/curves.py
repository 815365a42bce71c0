"""Curves short enough for a page: as many points as it has pixels, and no extreme is lost."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
POINTS = 600  # of a curve; each that stands for several has a mean, a lowest and a highest value
DIGITS = 5  # significant ones, which is more than a screen shows


@dataclass(frozen=True)
class Curve:
    """Values over x, both of length at most POINTS; `low` and `high` where a point stands for several."""

    x: Values
    y: Values
    low: Values | None = None
    high: Values | None = None


def shorten(x: NDArray[np.generic], y: Values, points: int = POINTS) -> Curve:
    """(n,) values in `points` buckets of neighbours: mean, lowest and highest of each, at its mean x.

    All values as they are where n is not above `points`. NaN counts as nothing; a bucket of nothing else stays NaN.
    """
    x = x.astype(np.float64)
    if len(x) <= points:
        return Curve(x, y)
    starts = np.linspace(0, len(x), points, endpoint=False).astype(np.int64)
    there = np.isfinite(y)
    counts = np.add.reduceat(there.astype(np.int64), starts)
    with np.errstate(invalid="ignore"):
        mean = np.add.reduceat(np.where(there, y, 0.0), starts) / counts
    mean_x = np.add.reduceat(x, starts) / np.diff(starts, append=len(x))
    return Curve(mean_x, mean, np.fmin.reduceat(y, starts), np.fmax.reduceat(y, starts))


def as_json(values: Values) -> list[float | int | None]:
    """Rounded to DIGITS significant digits; NaN becomes None, and whole numbers stay exact."""
    return [
        None if value != value else int(value) if value.is_integer() else float(f"{value:.{DIGITS}g}")
        for value in values.tolist()
    ]
