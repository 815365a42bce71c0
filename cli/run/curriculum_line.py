"""Describes the data curriculum of a run, for `mimcl train` and `mimcl plan`."""

from __future__ import annotations

import math

from mimcl.cli.config import Config
from mimcl.curriculum.plan import Plan


def curriculum_line(config: Config, plan: Plan) -> str:
    """Describe the data curriculum of a run in one line."""
    curriculum = config.curriculum
    if curriculum.name == "none":
        order = "every image once per pass" if curriculum.uniform == "epochs" else "uniform draws with replacement"
        return f"no data curriculum: {order}; temperature schedules and --r0 are ignored"
    if not plan.curriculum_draws:
        return f"curriculum {curriculum.name} has no effect: the run is shorter than half a window; train longer"
    learned = curriculum.temp_schedule == "learned"
    if learned and plan.curriculum_draws <= 2 * plan.window_length:
        return f"curriculum {curriculum.name} is too short to learn a temperature: it stays at r0 {curriculum.r0:g}"
    how = f"from r0 {curriculum.r0:g}"
    if curriculum.temp_schedule == "constant":
        how = f"at temperature {curriculum.temperature:g}"
    if learned:
        how += f" with eta {curriculum.learned_eta:g} and beta {curriculum.learned_beta:g}"
        how += ", may fall" if curriculum.learned_may_fall else ""
    line = (
        f"curriculum {curriculum.name}, {curriculum.temp_schedule} {how}, {curriculum.resampling}{_balance(plan)}, for "
        f"{min(plan.curriculum_draws, plan.draws):,} draws in windows of {plan.window_length:,}"
    )
    if plan.clamped:
        line += "; r0 is below the lowest value that a temperature reaches here, and is clamped"
    elif plan.balance and curriculum.temp_schedule != "constant" and plan.temperature(0) == math.inf:
        line += "; r0 is not below the highest value with balance, so the temperature is infinite throughout"
    return line


def _balance(plan: Plan) -> str:
    """Describe the balance of a plan; the effective fraction that it reaches is below that of equally likely images."""
    if not plan.balance or not plan.curve:
        return ""
    groups = f" in {plan.balance.groups:,} groups" if plan.balance.groups > 1 else ""
    return f", balanced over {plan.balance.clusters:,} clusters{groups} (r at most {plan.curve.uniform:.3f})"
