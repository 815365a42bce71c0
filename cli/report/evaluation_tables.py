"""Tables of a run's evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mimcl.cli.evaluate.results_file import SPREAD, is_share
from mimcl.cli.evenly_spaced import evenly_spaced
from mimcl.cli.report import formatting
from mimcl.cli.report.compared import describe_settings
from mimcl.cli.report.run_record import Evaluation, EvaluationKey

_MAX_ROWS = 12  # of a table


@dataclass(frozen=True)
class EvaluationTable:
    """The results of one evaluation: a row for each checkpoint."""

    name: str
    settings: str
    columns: list[str]
    rows: list[tuple[str, str, list[str]]]  # draws, checkpoint, values


def evaluation_tables(evaluations: Sequence[Evaluation]) -> list[EvaluationTable]:
    """Return a table for each evaluation."""
    by_key: dict[EvaluationKey, list[Evaluation]] = {}
    for line in evaluations:
        by_key.setdefault(line.key, []).append(line)
    tables = []
    for key, lines in by_key.items():
        columns = list(dict.fromkeys(name for line in lines for name in line.values if not name.endswith(SPREAD)))
        shown = [lines[place] for place in evenly_spaced(len(lines), _MAX_ROWS)]
        rows = [(f"{line.draw:,}", line.checkpoint, [_cell(line, name) for name in columns]) for line in shown]
        skipped = f"; {len(lines) - len(shown)} more in metrics.jsonl" if len(lines) > len(shown) else ""
        names = [name.replace("_", " ") for name in columns]
        tables.append(EvaluationTable(key.name, describe_settings(key) + skipped, names, rows))
    return tables


def _cell(line: Evaluation, name: str) -> str:
    """For example "46.8 %", or "17.6 ± 2.8 %" where the standard deviation is known."""
    value, deviation = line.values.get(name), line.values.get(name + SPREAD)
    if value is None or deviation is None:
        return formatting.share_or_number(value, is_share(name))
    return formatting.plus_minus(value, deviation, True)
