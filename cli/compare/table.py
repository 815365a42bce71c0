"""The table of a comparison: a block for each measure, and in it a line for each arm."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from mimcl.cli.compare.comparison import Comparison, Row
from mimcl.cli.console import console
from mimcl.cli.evaluate.results_file import is_share
from mimcl.cli.report.statistics import Summary


class _Block(NamedTuple):
    """A measure of all arms; `scale` and `digits` say how its values are shown."""

    title: str
    lines: list[tuple[str, Summary, Summary | None]]  # arm, mean over seeds, difference to the first arm
    scale: float = 1
    digits: int = 0


def print_table(comparison: Comparison) -> None:
    """Print every measure once; the differences are those to the first arm."""
    arms = _rows_of_first_quality(comparison)
    width = max(len(row.arm) for row in arms) + 2
    against = f"against {arms[0].arm}"
    places = max(16, len(against))
    console.print()
    console.print(f"{'':{width}}  seeds{'mean':>17}  {against:>{places}}")
    for block in _blocks(comparison):
        console.print(block.title)
        for arm, value, difference in block.lines:
            shown = _interval(difference, block.scale, block.digits, "+") if difference else ""
            mean = _interval(value, block.scale, block.digits)
            console.print(f"  {arm:{width}}{value.n:>5}{mean:>17}  {shown:>{places}}".rstrip())
    equal = len({row.draws for row in arms}) == 1
    draws = f"{arms[0].draws:,}" if equal else ", ".join(f"{row.arm} {row.draws:,}" for row in arms)
    console.print(f"draws of a run: {draws}")
    console.print()
    console.print("mean over seeds ± half-width of Student's 95 % confidence interval; differences paired by seed")


def _rows_of_first_quality(comparison: Comparison) -> list[Row]:
    """Return a row for each arm: losses, times and draws are the same for all qualities."""
    return [row for row in comparison.rows if row.quality == comparison.rows[0].quality]


def _blocks(comparison: Comparison) -> Iterator[_Block]:
    for quality in dict.fromkeys(row.quality for row in comparison.rows if row.quality):
        members = [row for row in comparison.rows if row.quality == quality]
        lines = [(row.arm, row.value, row.difference) for row in members]
        shares = is_share(quality.name)
        yield _Block(f"{quality.evaluation} {quality.name}{', %' if shares else ''}", lines, 100 if shares else 1, 1)
    arms = _rows_of_first_quality(comparison)
    losses = [(row.arm, row.loss, row.difference if row.quality is None else None) for row in arms]
    yield _Block("loss", losses, digits=4)
    yield _Block("training, s", [(row.arm, row.seconds, None) for row in arms])


def _interval(value: Summary, scale: float, digits: int, sign: str = "") -> str:
    if not value.n:
        return "-"
    text = f"{scale * value.mean:{sign}.{digits}f}"
    return text if math.isnan(value.high) else f"{text} ± {scale * (value.high - value.mean):.{digits}f}"
