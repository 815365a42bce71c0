"""Mean, standard deviation and confidence interval over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Summary:
    """Statistics of n finite values: mean, standard deviation (n - 1), and Student's 95 % interval of the mean."""

    n: int
    mean: float
    sd: float  # NaN below two values, as are low and high
    low: float
    high: float


def summarize(values: Sequence[float]) -> Summary:
    """Summarize one value per seed, ignoring NaN and infinity."""
    finite = np.array([value for value in values if math.isfinite(value)])
    if not len(finite):
        return Summary(0, math.nan, math.nan, math.nan, math.nan)
    mean = float(finite.mean())
    if len(finite) == 1:
        return Summary(1, mean, math.nan, math.nan, math.nan)
    from scipy.special import stdtrit  # takes a third of a second, and most reports have no seeds

    sd = float(finite.std(ddof=1))
    half = float(stdtrit(len(finite) - 1, 0.5 + CONFIDENCE / 2)) * sd / math.sqrt(len(finite))
    return Summary(len(finite), mean, sd, mean - half, mean + half)
