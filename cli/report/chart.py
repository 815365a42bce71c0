"""A chart as data for the page's script."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from mimcl.cli.report.curves import Curve, json_values

Format = Literal["number", "percent", "count", "exponent"]
XKind = Literal["samples", "time", "times drawn", "class", "distance"]


@dataclass(frozen=True)
class Series:
    """A line or bars, with a band from `low` to `high`."""

    label: str
    y: Sequence[float | int | None]
    low: Sequence[float | int | None] | None = None
    high: Sequence[float | int | None] | None = None
    group: int = 0  # colour
    bars: bool = False


@dataclass(frozen=True)
class Frame:
    """Values that the last series can take instead; a slider chooses them."""

    label: str
    y: Sequence[float | int | None]


@dataclass(frozen=True)
class Chart:
    """A card of the page with a chart. All series have the length of x."""

    title: str
    note: str  # what the values are, in a few words, above the chart
    explanation: str  # a sentence below it: what it shows and what to look for
    x: Sequence[float | int | None]
    series: Sequence[Series]
    x_kind: XKind = "samples"
    y_format: Format = "number"
    log: bool = False
    root: bool = False  # whether the y axis shows square roots, so that low bars can be seen beside high ones
    wide: bool = False
    points: bool = False  # whether to mark each point
    names: Sequence[str] = field(default_factory=tuple)  # of the classes, for x_kind "class"
    whole: int | None = None  # shows counts also as a share of this number
    frames: Sequence[Frame] = field(default_factory=tuple)  # the last one is what the last series has

    def to_json(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "x": self.x,
            "xKind": self.x_kind,
            "yFormat": self.y_format,
            "log": self.log,
            "root": self.root,
            "points": self.points,
            "names": self.names,
            "whole": self.whole,
            "series": [
                {"label": s.label, "y": s.y, "low": s.low, "high": s.high, "group": s.group, "bars": s.bars}
                for s in self.series
            ],
            "frames": [{"label": frame.label, "y": frame.y} for frame in self.frames],
        }

    @property
    def summary(self) -> str:
        """A text alternative for the chart."""
        parts = []
        for series in self.series:
            known = [value for value in series.y if value is not None]
            if known:
                parts.append(
                    f"{series.label} from {known[0]:.4g} to {known[-1]:.4g}, between {min(known):.4g} and "
                    f"{max(known):.4g}"
                )
        return f"{self.title}: " + "; ".join(parts)


def series_of(label: str, curve: Curve, group: int) -> Series:
    """Return a curve as a series, with its band if it has one."""
    if curve.low is None or curve.high is None:
        return Series(label, json_values(curve.y), group=group)
    return Series(label, json_values(curve.y), json_values(curve.low), json_values(curve.high), group)
