"""How many samples each arm's mean curve needs to reach the final accuracy of the first arm, A."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mimcl.cli.report.curves import Values, on_common_grid
from mimcl.cli.report.run_record import EvaluationKey
from mimcl.cli.report.several import Arm, accuracy_curve, curve_key
from mimcl.cli.report.statistics import CONFIDENCE

RESAMPLES = 2000
_FEW_SEEDS = 10  # with fewer, the interval is too narrow; see `bootstrap_ratio`
_MAX_VALUES = 2**21  # of resampled curves in memory


@dataclass(frozen=True)
class Interval:
    """95 % of the resampled ratios, 0 for resamples that never reach the target; `reached` is the others' share."""

    low: float
    high: float
    reached: float


@dataclass(frozen=True)
class ArmToTarget:
    """When the mean curve of an arm's seeds reaches the target."""

    label: str
    seeds: int
    evaluated: bool  # whether all of its seeds have curves
    draws: float  # NaN if it never reaches the target
    at_most: bool  # whether it is there at its first point already, so that `draws` is an upper bound
    ratio: float  # A's draws / the arm's; above 1 is sooner; 1 for A itself
    bound: str  # "≥" or "≤" where the ratio is a bound, else ""
    interval: Interval | None  # of the ratio; None for A itself, and where A or the arm has one seed
    time_ratio: float  # the same as ratio, in training time


@dataclass(frozen=True)
class SamplesToTarget:
    """All arms against the final accuracy of the first one, A."""

    key: EvaluationKey
    target: float  # mean nn of A's seeds at the last draw at which all of them were evaluated
    draws: float  # at which the mean curve of A's seeds first reaches the target
    at_most: bool
    arms: list[ArmToTarget]
    resamples: int = RESAMPLES

    @property
    def few_seeds(self) -> bool:
        """Whether an interval rests on too few seeds to be trusted."""
        return any(arm.interval and min(arm.seeds, self.arms[0].seeds) < _FEW_SEEDS for arm in self.arms)


def first_reach(x: Values, y: Values, target: Values | float) -> Values:
    """Return the smallest x at which the piecewise linear curve reaches `target`; NaN if it never does.

    x (points,), y (..., points), target (...); returns (...). If the first point is at or above the target, its x.
    """
    target = np.asarray(target)
    above = y >= target[..., None]
    place = above.argmax(axis=-1)[..., None]
    before = np.maximum(place - 1, 0)
    start, end = np.take_along_axis(y, before, -1)[..., 0], np.take_along_axis(y, place, -1)[..., 0]
    place, before = place[..., 0], before[..., 0]
    share = np.divide(target - start, end - start, out=np.zeros(target.shape), where=place > 0)
    return np.where(above.any(axis=-1), x[before] + share * (x[place] - x[before]), np.nan)


def samples_to_target(arms: Sequence[Arm]) -> SamplesToTarget | None:
    """Compare when each arm's mean nn curve reaches the end of A's; None if A has no nn curves.

    Mean curves are linear between evaluations. Intervals come from `bootstrap_ratio`.
    """
    key = curve_key(arms)
    if key is None:
        return None
    own = _curves(arms[0], key)
    if own is None:
        return None
    own_x, own_y = own
    mean = own_y.mean(axis=0)
    target = float(mean[-1])
    draws = float(first_reach(own_x, mean, target))
    at_most = bool(mean[0] >= target and draws > 0)
    seconds = _mean_seconds(arms[0], draws)
    found = [ArmToTarget(arms[0].label, len(arms[0].runs), True, draws, at_most, 1.0, "", None, 1.0)]
    for arm in arms[1:]:
        curves = _curves(arm, key)
        if curves is None:
            found.append(ArmToTarget(arm.label, len(arm.runs), False, math.nan, False, math.nan, "", None, math.nan))
            continue
        x, y = curves
        mean = y.mean(axis=0)
        needed = float(first_reach(x, mean, target))
        is_bound = bool(mean[0] >= target and needed > 0)
        known = needed > 0 and not (is_bound and at_most)  # nothing follows from two upper bounds
        needed_seconds = _mean_seconds(arm, needed) if known else math.nan
        found.append(
            ArmToTarget(
                arm.label,
                len(arm.runs),
                True,
                needed,
                is_bound,
                draws / needed if known else math.nan,
                "≥" if is_bound and known else "≤" if at_most and known else "",
                bootstrap_ratio(own_x, own_y, x, y) if min(len(own_y), len(y)) > 1 else None,
                seconds / needed_seconds if needed_seconds > 0 else math.nan,
            )
        )
    return SamplesToTarget(key, target, draws, at_most, found)


def bootstrap_ratio(own_x: Values, own_y: Values, x: Values, y: Values) -> Interval:
    """Percentile bootstrap of the ratio of A's draws to an arm's, from their curves x (points,), y (seeds, points).

    Resamples the seeds of both; each time the target is the end of A's resampled mean curve (Efron and Tibshirani, An
    Introduction to the Bootstrap, chapter 13). Deterministic. For simulated arms whose seeds end 1 % apart (standard
    deviation), the interval contained the true ratio in 70 % of the cases with 2 seeds, 83 % with 3, 90 % with 5 and
    95 % with 10.
    """
    rng = np.random.default_rng(0)
    own_weights, weights = (rng.multinomial(n, np.full(n, 1 / n), RESAMPLES) / n for n in (len(own_y), len(y)))
    ratios = []
    chunk = max(1, _MAX_VALUES // max(len(own_x), len(x)))
    for start in range(0, RESAMPLES, chunk):
        own_mean = own_weights[start : start + chunk] @ own_y
        target = own_mean[:, -1]
        own_draws = first_reach(own_x, own_mean, target)
        draws = first_reach(x, weights[start : start + chunk] @ y, target)
        ratio = np.divide(own_draws, draws, out=np.full(len(draws), np.inf), where=draws != 0)
        ratios.append(np.where((draws == 0) & (own_draws == 0), 1.0, ratio))
    ratio = np.concatenate(ratios)
    reached = ~np.isnan(ratio)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.where(reached, ratio, 0.0), [tail, 1 - tail], method="inverted_cdf")
    return Interval(float(low), float(high), float(reached.mean()))


def _curves(arm: Arm, key: EvaluationKey) -> tuple[Values, Values] | None:
    """x (points,) and y (seeds, points); None if a seed has fewer than two points, or they have no draws in common."""
    curves = [accuracy_curve(run, key) for run in arm.runs]
    return on_common_grid(curves) if min(len(x) for x, _ in curves) > 1 else None


def _mean_seconds(arm: Arm, draws: float) -> float:
    """Training time up to `draws`, averaged over the arm's seeds."""
    return float(np.mean([run.seconds_at(np.array([draws])) for run in arm.runs]))
