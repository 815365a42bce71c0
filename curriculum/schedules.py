"""Schedules of the temperature over the curriculum.

The configured ones set r, the effective fraction, at progress t in [0, 1], from r0 to r_inf = r(infinity).
"""

from __future__ import annotations

import math
from collections.abc import Callable

from mimcl.curriculum.config import CurriculumConfig
from mimcl.curriculum.temperature import EffectiveFraction

Schedule = Callable[[float, EffectiveFraction], float]  # tau from the progress in [0, 1] and the images' r(tau)


def cosine(t: float, r0: float, r_inf: float) -> float:
    """Slow at both ends; the paper's schedule."""
    return r0 + (r_inf - r0) * (1 - math.cos(math.pi * t)) / 2


def linear(t: float, r0: float, r_inf: float) -> float:
    """A straight line; the reference code's schedule."""
    return r0 + (r_inf - r0) * t


def exponential(t: float, r0: float, r_inf: float) -> float:
    """Grow by the same factor in equal intervals."""
    return r0 * (r_inf / r0) ** t


def step(t: float, r0: float, r_inf: float) -> float:
    """Four stages of equal length, the last with all data."""
    return r0 + (r_inf - r0) * min(math.floor(4 * t), 3) / 3


SCHEDULES: dict[str, Callable[[float, float, float], float]] = {
    "cosine": cosine,
    "linear": linear,
    "exponential": exponential,
    "step": step,
}


def schedule_of(config: CurriculumConfig) -> Schedule:
    """Return the configured schedule, which is not the learned one."""
    if config.temp_schedule == "constant":
        return lambda progress, curve: config.temperature
    target = SCHEDULES[config.temp_schedule]
    return lambda progress, curve: curve.inverse(target(progress, config.r0, curve.uniform))


def by_fraction(target: Callable[[float], float]) -> Schedule:
    """Return the schedule with the effective fraction `target(progress)`; fractions out of reach are the nearest ones.

    The schedule raises ValueError where the target is not above 0.
    """

    def schedule(progress: float, curve: EffectiveFraction) -> float:
        fraction = float(target(progress))
        if not 0 < fraction <= 1:
            raise ValueError(
                f"the schedule gives {fraction:g} at progress {progress:g}; an effective fraction is above 0, at most 1"
            )
        return curve.inverse(fraction)

    return schedule


def by_temperature(temperature: Callable[[float], float]) -> Schedule:
    """Return the schedule with `temperature(progress)`; it raises ValueError where that is not above 0."""

    def schedule(progress: float, curve: EffectiveFraction) -> float:
        tau = float(temperature(progress))
        if not tau > 0:
            raise ValueError(f"the schedule gives the temperature {tau:g} at progress {progress:g}; it must be above 0")
        return tau

    return schedule
