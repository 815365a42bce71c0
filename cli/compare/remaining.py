"""Estimate how long the runs of a comparison that are left will take."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from functools import reduce
from operator import add

from mimcl.cli.estimate import Estimate, estimate
from mimcl.cli.report.run_record import RunRecord


class Remaining:
    """Estimates from pilot runs and from the logged lines of finished runs, arm by arm."""

    def __init__(self, seconds_per_step: Mapping[str, float], batch_size: int) -> None:
        """`seconds_per_step` are an arm's by its pilot run, if there was one."""
        self._per_draw = {arm: _exactly(seconds / batch_size) for arm, seconds in seconds_per_step.items()}
        self._beside: list[float] = []

    def add(self, arm: str, record: RunRecord, wall_s: float | None = None) -> None:
        """Take a finished run into account; `wall_s` is how long it took with start-up and evaluations, if known."""
        rates = record.steps["images_per_second"]
        if found := estimate(1 / rates[rates > 0]):
            self._per_draw[arm] = found
        if wall_s is not None:
            self._beside.append(max(0.0, wall_s - float(record.seconds[-1])))

    def __call__(self, draws: Iterable[tuple[str, int]]) -> str:
        """Return for example "about 4 min left" for runs of (arm, draws), or "" while nothing is known.

        An arm that has not been measured counts as the slowest of the others, which the text says.
        """
        if not self._per_draw:
            return ""
        slowest = max(self._per_draw.values(), key=lambda found: found.median)
        beside = _exactly(statistics.median(self._beside) if self._beside else 0.0)
        left = list(draws)
        total = reduce(add, (self._per_draw.get(arm, slowest) * count + beside for arm, count in left))
        unknown = dict.fromkeys(arm for arm, _ in left if arm not in self._per_draw)
        return f"{total} left" + (f" if {' and '.join(unknown)} takes as long as the others" if unknown else "")


def _exactly(seconds: float) -> Estimate:
    return Estimate(seconds, seconds, seconds)
