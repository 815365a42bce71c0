"""Estimates of durations from measured times: a median of several, in words that say how far they vary."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from mimcl.cli.console import format_duration

_FEWEST = 3  # times that make an estimate
_RANGE = 2.0  # ratio of the longest to the shortest time above which a single figure would mislead
_UNITS = ((2 * 86400, 86400, "days"), (2 * 3600, 3600, "h"), (120, 60, "min"), (0, 1, "s"))  # from, seconds, name


@dataclass(frozen=True)
class Estimate:
    """A duration in seconds: the median of the measured times, and their 10th and 90th percentile.

    Multiply it by a number of pieces of work; add estimates of different kinds of work.
    """

    low: float
    median: float
    high: float

    def __mul__(self, count: float) -> Estimate:
        return Estimate(self.low * count, self.median * count, self.high * count)

    def __add__(self, other: Estimate) -> Estimate:
        return Estimate(self.low + other.low, self.median + other.median, self.high + other.high)

    def __str__(self) -> str:
        """Return for example "about 4 min", or "2 to 5 min" where the times vary by more than a factor of 2."""
        if self.high < 1 or self.high <= _RANGE * self.low or not math.isfinite(self.high):
            return f"about {format_duration(self.median)}"
        seconds, unit = next((seconds, unit) for start, seconds, unit in _UNITS if self.high >= start)
        if self.low < 0.5 * seconds:
            return f"{format_duration(self.low)} to {format_duration(self.high)}"
        places = 1 if self.low < 10 * seconds and unit == "days" else 0
        return f"{self.low / seconds:.{places}f} to {self.high / seconds:.{places}f} {unit}"


def estimate(times: Iterable[float], warm_up: int = 1) -> Estimate | None:
    """Estimate how long a piece of work takes from the seconds that equal pieces took, in their order.

    The first `warm_up` are ignored. None when fewer than three others remain.
    """
    warm = list(times)[warm_up:]
    if len(warm) < _FEWEST:
        return None
    tenths = statistics.quantiles(warm, n=10, method="inclusive")
    return Estimate(tenths[0], statistics.median(warm), tenths[-1])
