"""The results of a comparison: figures of its runs, means over seeds, and differences to the first arm."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mimcl.cli.evaluate.results_file import ONLINE
from mimcl.cli.json_output import json_ready
from mimcl.cli.report.read import read_run
from mimcl.cli.report.run_record import Evaluation, RunRecord
from mimcl.cli.report.statistics import Summary, summarize
from mimcl.pipeline.files import DataError, open_regular, write_json

Protocols = Mapping[str, Mapping[str, Any]]  # evaluation name: settings and index of its lines

_TIME_TOLERANCE = 0.03  # by which training times may differ and still count as equal


@dataclass(frozen=True)
class Quality:
    """A value of an evaluation with what it depends on."""

    evaluation: str
    settings: str  # JSON with sorted keys
    index: str  # fingerprint of the evaluated split
    name: str


@dataclass(frozen=True)
class Figures:
    """Results of a finished run."""

    arm: str
    seed: int
    folder: Path
    draws: int
    loss: float  # mean over the steps of the last logged line
    seconds: float  # training time from the logged rates, without evaluations, start-up and checkpoints
    qualities: dict[Quality, float]  # shares, 0 to 1, and ranks, at the end of the run


@dataclass(frozen=True)
class Row:
    """An arm's row in the table of one quality; None for a table of losses only."""

    arm: str
    quality: Quality | None
    value: Summary
    difference: Summary | None  # to the first arm, seed by seed; None for the first arm itself
    loss: Summary
    seconds: Summary
    draws: int


@dataclass(frozen=True)
class Comparison:
    """The figures of the finished runs, and the rows of all tables."""

    runs: list[Figures]
    rows: list[Row]


def read_figures(arm: str, seed: int, folder: Path, protocols: Protocols) -> Figures:
    """Read a finished run with its evaluations by `protocols` and those made while training. Raises DataError."""
    record = read_run(folder)
    qualities = {
        Quality(evaluation.key.name, evaluation.key.settings, evaluation.key.index, name): value
        for evaluation in record.evaluations
        if evaluation.key.name in ONLINE or _follows(evaluation, protocols)
        if evaluation.draw == record.draws
        for name, value in evaluation.accuracies.items()
    }
    return Figures(arm, seed, folder, record.draws, record.final_loss, float(record.seconds[-1]), qualities)


def is_evaluated(record: RunRecord, evaluation: str, protocols: Protocols) -> bool:
    """Whether the end of the run was evaluated with the comparison's protocol; false while there is none."""
    at_end = [line for line in record.evaluations if line.draw == record.draws]
    return any(line.key.name == evaluation and _follows(line, protocols) for line in at_end)


def last_protocol(folder: Path, evaluation: str) -> dict[str, Any]:
    """Return the settings and index of the last line of an evaluation. Raises DataError if there is none."""
    with open_regular(folder / "metrics.jsonl") as file:
        lines = file.read().splitlines()
    for text in reversed(lines):
        try:
            line = json.loads(text)
        except ValueError:  # damaged; not the line just written
            continue
        if isinstance(line, dict) and line.get("evaluation") == evaluation:
            return {"settings": line["settings"], "index": line["index"]}
    raise DataError(f"{folder}/metrics.jsonl has no line of {evaluation}, which should have just been written")


def _follows(line: Evaluation, protocols: Protocols) -> bool:
    protocol = protocols.get(line.key.name)
    if protocol is None or line.key.index != protocol["index"]:
        return False
    return line.key.settings == json.dumps(protocol["settings"], sort_keys=True)


def compare_figures(runs: Sequence[Figures]) -> Comparison:
    """Compute means over seeds with Student's 95 % intervals, and paired differences to the first run's arm.

    Differences are paired by seed: seeds without a counterpart in the first arm are ignored.
    """
    arms = {run.arm: [other for other in runs if other.arm == run.arm] for run in runs}
    first = {run.seed: run for run in next(iter(arms.values()))}
    qualities = dict.fromkeys(quality for run in runs for quality in run.qualities)
    rows = []
    for quality in qualities or [None]:
        for arm, members in arms.items():
            difference = None
            if arm != runs[0].arm:
                pairs = [(run, first[run.seed]) for run in members if run.seed in first]
                difference = summarize([_value(run, quality) - _value(base, quality) for run, base in pairs])
            value = summarize([_value(run, quality) for run in members])
            loss, seconds = summarize([run.loss for run in members]), summarize([run.seconds for run in members])
            rows.append(Row(arm, quality, value, difference, loss, seconds, members[0].draws))
    return Comparison(list(runs), rows)


def _value(run: Figures, quality: Quality | None) -> float:
    return run.loss if quality is None else run.qualities.get(quality, math.nan)


def write_comparison(path: Path, head: dict[str, Any], comparison: Comparison) -> None:
    """Write comparison.json: `head` with all figures and rows."""
    runs = [
        vars(run) | {"qualities": [vars(quality) | {"value": value} for quality, value in run.qualities.items()]}
        for run in comparison.runs
    ]
    write_json(path, json_ready(head | {"runs": runs, "rows": comparison.rows}))


def update_comparison(out: Path, **values: Any) -> None:
    """Replace values in comparison.json."""
    path = out / "comparison.json"
    write_json(path, json.loads(path.read_bytes()) | values)


def unequal_time(comparison: Comparison) -> str | None:
    """Return a warning if the arms' training times differ by more than 3 %, else None."""
    seconds = {row.arm: row.seconds.mean for row in comparison.rows}
    shortest, longest = min(seconds, key=seconds.__getitem__), max(seconds, key=seconds.__getitem__)
    if not seconds[longest] > (1 + _TIME_TOLERANCE) * seconds[shortest]:
        return None
    return (
        f"training took unequal time: {longest} {seconds[longest]:,.0f} s, {shortest} {seconds[shortest]:,.0f} s. "
        "The pilot runs may have been slowed down by other processes; compare again with another --out"
    )
