"""The forecast of a run, as `mimcl plan` prints and draws it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mimcl.cli.config import Config
    from mimcl.curriculum.forecast import WindowForecast
    from mimcl.curriculum.resolution import Resolution


@dataclass(frozen=True)
class PlannedRun:
    """What a run would draw: the forecast of some of its windows, evenly spaced, with the first and the last."""

    name: str  # of curriculum and schedule
    config: Config
    samples: int
    draws: int
    window_length: int
    windows: int
    curriculum: str  # description of the curriculum, one line
    requests: list[str]  # lines about the requests for remote data
    forecasts: list[WindowForecast]
    sides: Resolution  # of the crops
    resolution: str = ""  # description of the sides, one line; empty if there is only one
    chosen: str = ""  # by recipe auto, one line

    def rows(self, count: int) -> list[WindowForecast]:
        """Return at most `count` of the forecasts, evenly spaced, with the first and the last."""
        places = range(min(count, len(self.forecasts)))
        last = len(self.forecasts) - 1
        return [self.forecasts[round(place * last / max(len(places) - 1, 1))] for place in places]
