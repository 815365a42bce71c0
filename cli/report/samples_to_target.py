"""The race to A's accuracy: how many samples each arm's mean curve takes to come to where A's ends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mimcl.cli.report.several import CONFIDENCE, Arm, Protocol, nn_curve, nn_protocol, on_one_grid

Values = NDArray[np.float64]

RESAMPLES = 2000
_FEW_SEEDS = 10  # below, the interval is too narrow; see `resampled`
_AT_ONCE = 2**21  # values of resampled curves in memory


@dataclass(frozen=True)
class Interval:
    """95 % of the resampled ratios, those that never reach counted as 0; `reached` is the share of those that do."""

    low: float
    high: float
    reached: float


@dataclass(frozen=True)
class Race:
    """How soon the mean curve of an arm's seeds reaches a given accuracy."""

    label: str
    seeds: int
    judged: bool  # all of its seeds have curves
    draws: float  # NaN where it does not get there
    at_most: bool  # it is there at the first judged point, perhaps earlier
    ratio: float  # A's draws / the arm's: above 1 is sooner; 1 for A itself
    bound: str  # of the ratio: "≥" or "≤" where a number of draws is an upper bound, else ""
    interval: Interval | None  # None for A itself, and where A or the arm has one seed
    time_ratio: float  # the same as ratio, of wall time


@dataclass(frozen=True)
class Races:
    """All arms' ways to the final accuracy of the first one, A."""

    protocol: Protocol
    target: float  # mean over A's seeds of nn at the last draw to which all of them were judged
    draws: float  # at which the mean curve of A's seeds reaches it first
    at_most: bool
    arms: list[Race]
    resamples: int = RESAMPLES

    @property
    def few_seeds(self) -> bool:
        """Whether an interval rests on too few of them to cover what it says."""
        return any(race.interval and min(race.seeds, self.arms[0].seeds) < _FEW_SEEDS for race in self.arms)


@dataclass(frozen=True)
class _Curves:
    """Of an arm's seeds at the same draws: (points,) and (seeds, points)."""

    x: Values
    y: Values


def first_reach(x: Values, y: Values, target: Values | float) -> Values:
    """The smallest x at which the line through the points reaches `target`; NaN where it never does.

    x (points,), y (..., points), target (...); returns (...). Where the first point is there already, its x, which may
    be too late.
    """
    target = np.asarray(target)
    above = y >= target[..., None]
    place = above.argmax(axis=-1)[..., None]
    before = np.maximum(place - 1, 0)
    start, end = np.take_along_axis(y, before, -1)[..., 0], np.take_along_axis(y, place, -1)[..., 0]
    place, before = place[..., 0], before[..., 0]
    share = np.divide(target - start, end - start, out=np.zeros(target.shape), where=place > 0)
    return np.where(above.any(axis=-1), x[before] + share * (x[place] - x[before]), np.nan)


def races(arms: Sequence[Arm]) -> Races | None:
    """Draws until the final nn of the first arm, A; None where there are no curves of nn.

    All arms alike: what races is the mean curve of an arm's seeds, straight between the judged points. A's final nn is
    the last value of its mean curve. Intervals are percentiles over resampled seeds of both, of A with its target.
    """
    protocol = nn_protocol(arms)
    if protocol is None:
        return None
    own = _curves(arms[0], protocol)
    if own is None:
        return None
    mean = own.y.mean(axis=0)
    target = float(mean[-1])
    draws = float(first_reach(own.x, mean, target))
    at_most = bool(mean[0] >= target and draws > 0)
    seconds = _seconds(arms[0], draws)
    found = [Race(arms[0].label, len(arms[0].runs), True, draws, at_most, 1.0, "", None, 1.0)]
    for arm in arms[1:]:
        curves = _curves(arm, protocol)
        if curves is None:
            found.append(Race(arm.label, len(arm.runs), False, math.nan, False, math.nan, "", None, math.nan))
            continue
        mean = curves.y.mean(axis=0)
        needed = float(first_reach(curves.x, mean, target))
        late = bool(mean[0] >= target and needed > 0)
        # Of two upper bounds the ratio may be anything.
        known = needed > 0 and not (late and at_most)
        needed_seconds = _seconds(arm, needed) if known else math.nan
        found.append(
            Race(
                arm.label,
                len(arm.runs),
                True,
                needed,
                late,
                draws / needed if known else math.nan,
                "≥" if late and known else "≤" if at_most and known else "",
                resampled(own.x, own.y, curves.x, curves.y) if min(len(own.y), len(curves.y)) > 1 else None,
                seconds / needed_seconds if needed_seconds > 0 else math.nan,
            )
        )
    return Races(protocol, target, draws, at_most, found)


def resampled(own_x: Values, own_y: Values, x: Values, y: Values) -> Interval:
    """Of the ratio of A's draws to an arm's, from curves (seeds, points) of A and of the arm: a percentile bootstrap.

    Seeds of both are drawn with replacement; each time the target is the end of A's mean curve (Efron and Tibshirani,
    An Introduction to the Bootstrap, chapter 13). Always the same numbers for the same curves. Of simulated arms whose
    seeds end 1 % apart (standard deviation) it held the true ratio in 70 % of the cases with 2 seeds, 83 % with 3,
    90 % with 5 and 95 % with 10.
    """
    rng = np.random.default_rng(0)
    own_weights, weights = (rng.multinomial(n, np.full(n, 1 / n), RESAMPLES) / n for n in (len(own_y), len(y)))
    ratios = []
    at_once = max(1, _AT_ONCE // max(len(own_x), len(x)))
    for start in range(0, RESAMPLES, at_once):
        own_mean = own_weights[start : start + at_once] @ own_y
        target = own_mean[:, -1]
        own_draws = first_reach(own_x, own_mean, target)
        draws = first_reach(x, weights[start : start + at_once] @ y, target)
        ratio = np.divide(own_draws, draws, out=np.full(len(draws), np.inf), where=draws != 0)
        ratios.append(np.where((draws == 0) & (own_draws == 0), 1.0, ratio))
    ratio = np.concatenate(ratios)
    reached = ~np.isnan(ratio)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.where(reached, ratio, 0.0), [tail, 1 - tail], method="inverted_cdf")
    return Interval(float(low), float(high), float(reached.mean()))


def _curves(arm: Arm, protocol: Protocol) -> _Curves | None:
    """None where a seed has fewer than two points, or the seeds have no draws in common."""
    curves = [nn_curve(run, protocol) for run in arm.runs]
    together = on_one_grid(curves) if min(len(x) for x, _ in curves) > 1 else None
    return None if together is None else _Curves(*together)


def _seconds(arm: Arm, draws: float) -> float:
    """Mean over its seeds."""
    return float(np.mean([run.seconds_at(np.array([draws])) for run in arm.runs]))
