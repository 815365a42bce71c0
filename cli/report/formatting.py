"""Format numbers for the page."""

from __future__ import annotations

import math

MISSING = "–"


def number(value: float | None, digits: int = 4) -> str:
    """Format with `digits` significant digits; large numbers as integers with commas."""
    if value is None or not math.isfinite(value):
        return MISSING
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    if value and abs(value) < 1e-3:
        return f"{value:.2e}"
    return f"{value:.{digits}g}"


def percent(share: float | None, places: int = 1) -> str:
    return MISSING if share is None or not math.isfinite(share) else f"{100 * share:.{places}f} %"


def share_or_number(value: float | None, is_share: bool) -> str:
    return percent(value) if is_share else number(value)


def plus_minus(mean: float, deviation: float, is_share: bool) -> str:
    """Format "mean ± deviation" with two significant digits of the deviation; only the mean if it is not finite."""
    if not math.isfinite(deviation):
        return share_or_number(mean, is_share)
    return _same_decimals((mean, deviation), deviation, is_share, " ± ")


def interval(low: float, high: float, is_share: bool) -> str:
    """Format "low to high" with two significant digits of half the width."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return MISSING
    return _same_decimals((low, high), (high - low) / 2, is_share, " to ")


def _same_decimals(values: tuple[float, ...], scale: float, is_share: bool, between: str) -> str:
    factor, unit = (100, " %") if is_share else (1, "")
    scale *= factor
    places = min(6, max(1 if is_share else 0, 1 - math.floor(math.log10(scale)))) if scale > 0 else 4
    if is_share:
        places = min(places, 2)
    return between.join(f"{factor * value:,.{places}f}" for value in values).replace("-", "−") + unit


def short(count: float | None) -> str:
    """Format a count, for example 12,480, 1.28 M or 1.02 G."""
    if count is None or not math.isfinite(count):
        return MISSING
    for size, sign in ((1e9, "G"), (1e6, "M")):
        if abs(count) >= size:
            return f"{count / size:.3g} {sign}"
    return f"{count:,.0f}"
