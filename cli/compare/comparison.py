"""What a comparison came to: its runs' figures, their means over seeds, and the differences to the first arm."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mimcl.cli.console import console
from mimcl.cli.json_output import json_ready
from mimcl.cli.report.read import read_run
from mimcl.cli.report.run_record import Evaluation, RunRecord
from mimcl.cli.report.statistics import Summary, summarize
from mimcl.pipeline.files import DataError, open_regular, write_json

Quality = tuple[str, str, str, str]  # evaluation, its settings, the split's fingerprint, name of the value
Protocols = Mapping[str, Mapping[str, Any]]  # settings and index of a line, by evaluation

_EQUAL = 0.03  # how much longer than the shortest equal training times may be
_WHILE_TRAINING = "online_knn"  # nobody but the training itself writes lines of this name


@dataclass(frozen=True)
class Figures:
    """Of a whole run."""

    arm: str
    seed: int
    folder: Path
    draws: int
    loss: float  # mean over the last steps, since the report before
    seconds: float  # of training, by the rates that were logged; evaluations, starts and checkpoints do not count
    qualities: dict[Quality, float]  # shares, 0 to 1, at the run's end


@dataclass(frozen=True)
class Row:
    """An arm in the table of one quality, None for the loss alone."""

    arm: str
    quality: Quality | None
    value: Summary
    difference: Summary | None  # to the first arm, seed by seed; None for the first arm
    loss: Summary
    seconds: Summary
    draws: int


@dataclass(frozen=True)
class Comparison:
    """The figures of the runs that are done, in the order of arms, and all tables' rows."""

    runs: list[Figures]
    rows: list[Row]


def figures(arm: str, seed: int, folder: Path, protocols: Protocols) -> Figures:
    """Reads a finished run; of its evaluations those by `protocols`, and while it trained. Raises DataError."""
    record = read_run(folder)
    qualities = {
        (*evaluation.key, name): value
        for evaluation in record.evaluations
        if evaluation.key.name == _WHILE_TRAINING or _follows(evaluation, protocols)
        if evaluation.draw == record.draws
        for name, value in evaluation.accuracies.items()
    }
    return Figures(arm, seed, folder, record.draws, record.final_loss, float(record.seconds[-1]), qualities)


def is_evaluated(record: RunRecord, evaluation: str, protocols: Protocols) -> bool:
    """Whether the end of the run was judged this way, by the protocol of the others; never before there is one."""
    return any(
        line.key.name == evaluation and line.draw == record.draws and _follows(line, protocols)
        for line in record.evaluations
    )


def last_protocol(folder: Path, evaluation: str) -> dict[str, Any]:
    """Settings and index of the last line that this evaluation wrote, which has just ended."""
    with open_regular(folder / "metrics.jsonl") as file:
        lines = file.read().splitlines()
    for text in reversed(lines):
        try:
            line = json.loads(text)
        except ValueError:  # damaged; an earlier one, since the last is ours
            continue
        if isinstance(line, dict) and line.get("evaluation") == evaluation:
            return {"settings": line["settings"], "index": line["index"]}
    raise DataError(f"{folder}/metrics.jsonl has no line of {evaluation}, which was just judged; check the disk")


def _follows(line: Evaluation, protocols: Protocols) -> bool:
    its = protocols.get(line.key.name)
    if its is None or line.key.index != its["index"]:
        return False
    return line.key.settings == json.dumps(its["settings"], sort_keys=True)


def compare_figures(runs: Sequence[Figures]) -> Comparison:
    """Means over seeds with Student's 95 % intervals; differences are taken seed by seed, so they need the same seeds.

    The first run's arm is what the others are compared with.
    """
    arms = {run.arm: [other for other in runs if other.arm == run.arm] for run in runs}
    first = {run.seed: run for run in next(iter(arms.values()))}
    qualities = dict.fromkeys(quality for run in runs for quality in run.qualities)
    rows = []
    for quality in qualities or [None]:
        for arm, members in arms.items():
            differences = None
            if arm != runs[0].arm:
                pairs = [(run, first[run.seed]) for run in members if run.seed in first]
                differences = summarize([_value(run, quality) - _value(base, quality) for run, base in pairs])
            value = summarize([_value(run, quality) for run in members])
            loss, seconds = summarize([run.loss for run in members]), summarize([run.seconds for run in members])
            rows.append(Row(arm, quality, value, differences, loss, seconds, members[0].draws))
    return Comparison(list(runs), rows)


def _value(run: Figures, quality: Quality | None) -> float:
    return run.loss if quality is None else run.qualities.get(quality, math.nan)


def write_comparison(path: Path, head: dict[str, Any], comparison: Comparison) -> None:
    """Writes comparison.json: what was compared, and every number."""
    runs = [vars(run) | {"qualities": [_named(*item) for item in run.qualities.items()]} for run in comparison.runs]
    rows = [vars(row) | {"quality": row.quality and _named(row.quality)} for row in comparison.rows]
    write_json(path, json_ready(head | {"runs": runs, "rows": rows}))


def note(out: Path, **values: Any) -> None:
    """Keeps values in comparison.json, the rest of which stays."""
    path = out / "comparison.json"
    write_json(path, json.loads(path.read_text()) | values)


def _named(quality: Quality, value: float | None = None) -> dict[str, Any]:
    names = dict(zip(("evaluation", "settings", "index", "name"), quality, strict=True))
    return names if value is None else names | {"value": value}


def show(comparison: Comparison) -> None:
    """Prints a table for each quality."""
    rows = comparison.rows
    width = max(6, *(len(row.arm) for row in rows)) + 2
    for quality in dict.fromkeys(row.quality for row in rows):
        of_quality = [row for row in rows if row.quality == quality]
        title = "loss" if quality is None else f"{quality[0]} {quality[3]}, %"
        against = f"against {of_quality[0].arm}"
        heads = f"{title:>18}{against:>{max(20, len(against) + 2)}}{'loss':>20}{'training':>18}{'draws':>12}"
        console.print(f"\n{'arm':{width}}{'seeds':>5}{heads}")
        scale, digits = (1, 4) if quality is None else (100, 1)
        for row in of_quality:
            value = _interval(row.value, scale, digits)
            difference = _interval(row.difference, scale, digits, sign="+") if row.difference else ""
            time = _interval(row.seconds, 1, 0) + " s"
            console.print(
                f"{row.arm:{width}}{row.value.n:>5}{value:>18}{difference:>{max(20, len(against) + 2)}}"
                f"{_interval(row.loss, 1, 4):>20}{time:>18}{row.draws:>12,}"
            )
    console.print("\nmean over seeds ± half of Student's 95 % interval; differences are taken seed by seed")


def unequal_time(comparison: Comparison) -> str | None:
    """What to say where the arms' training did not take equal time after all; None where it did."""
    seconds = {row.arm: row.seconds.mean for row in comparison.rows}
    shortest, longest = min(seconds, key=seconds.__getitem__), max(seconds, key=seconds.__getitem__)
    if not seconds[longest] > (1 + _EQUAL) * seconds[shortest]:
        return None
    return (
        f"training took unequal time: {longest} {seconds[longest]:,.0f} s, {shortest} {seconds[shortest]:,.0f} s. "
        "The short runs measured something else, on a busy machine perhaps; compare once more with another --out"
    )


def _interval(value: Summary, scale: float, digits: int, sign: str = "") -> str:
    if not value.n:
        return "-"
    text = f"{scale * value.mean:{sign}.{digits}f}"
    return text if math.isnan(value.high) else f"{text} ± {scale * (value.high - value.mean):.{digits}f}"
