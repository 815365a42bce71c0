"""What a run wrote, as arrays: read without writing anything, also while the run goes on."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mimcl.cli.config import read_yaml
from mimcl.cli.evaluate.results_file import SPREAD, UNTRAINED
from mimcl.model import checkpoint
from mimcl.model.checkpoint import CheckpointError
from mimcl.pipeline.files import DataError, open_regular

Values = NDArray[np.float64]

_MOST_COLUMNS = 200
_NO_COLUMN = {"step", "draw", "window", "digest"}
_LARGEST = 2**53  # above, a float64 does not hold every whole number


@dataclass(frozen=True)
class Table:
    """Lines of one kind in the order of their draws: columns of the same length, NaN where a line has no number."""

    draw: NDArray[np.int64]
    columns: dict[str, Values]

    def __len__(self) -> int:
        return len(self.draw)

    def __getitem__(self, name: str) -> Values:
        """NaN throughout where no line has it."""
        return self.columns.get(name, np.full(len(self), np.nan))

    def has(self, name: str) -> bool:
        """Whether some line has a number there."""
        return name in self.columns and bool(np.isfinite(self.columns[name]).any())


@dataclass(frozen=True)
class Evaluation:
    """A line of an evaluation: shares by name, and what they depend on."""

    name: str
    settings: str  # as JSON, in order of the names
    index: str  # fingerprint of the split judged on; of what was judged while training, that of the run's data
    data: str
    draw: int
    checkpoint: str
    values: dict[str, float]

    @property
    def protocol(self) -> tuple[str, str, str]:
        """Numbers may stand in one mean only where this is the same."""
        return self.name, self.settings, self.index

    @property
    def accuracies(self) -> dict[str, float]:
        """The values that are shares of images given their own class, of the trained encoder: no spread."""
        return {
            name: value
            for name, value in self.values.items()
            if not name.startswith(UNTRAINED) and not name.endswith(SPREAD)
        }


@dataclass(frozen=True)
class RunRecord:
    """All that a report says of a run comes from here, but for pictures and labels."""

    folder: Path
    config: dict[str, Any]  # by dotted keys
    steps: Table
    windows: Table
    evaluations: list[Evaluation]  # by draw; of several alike the last
    counts: NDArray[np.uint32] | None  # how often each image was drawn, when the last checkpoint was made
    marks: dict[str, str | None]  # fingerprints of the data, from the newest checkpoint; empty without any
    checkpoints: list[Path]  # oldest first
    bad_samples: int
    damaged: int  # lines of metrics.jsonl that are none

    @cached_property
    def seconds(self) -> Values:
        """Time spent training up to each line of steps, from the rates: metrics.jsonl holds no clock, on purpose.

        A line's images_per_second is the mean since the line before, so it took draws / rate. Starts, trials and the
        time between a stop and a resume are not counted. A line without a rate is given the run's median.
        """
        rates = self.steps["images_per_second"]
        rates = np.where(rates > 0, rates, np.nan)
        known = rates[np.isfinite(rates)]
        rates = np.where(np.isfinite(rates), rates, np.median(known) if len(known) else np.nan)
        return np.cumsum(np.diff(self.steps.draw, prepend=0) / rates)

    def seconds_at(self, draws: NDArray[np.int64]) -> Values:
        """The time up to each of these draws."""
        return np.interp(draws, np.concatenate([[0], self.steps.draw]), np.concatenate([[0.0], self.seconds]))

    @property
    def images(self) -> int | None:
        """How many the run draws from, where draw_counts.npy says so."""
        return None if self.counts is None else len(self.counts)

    @property
    def draws(self) -> int:
        """Done so far, as far as they were logged."""
        return int(self.steps.draw[-1])

    @property
    def final_loss(self) -> float:
        """The last one that is a number: a mean over the steps since the line before."""
        losses = self.steps["loss"]
        losses = losses[np.isfinite(losses)]
        return float(losses[-1]) if len(losses) else math.nan

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    def last_evaluations(self) -> dict[tuple[str, str, str], Evaluation]:
        """Of each protocol the one of the most draws."""
        return {evaluation.protocol: evaluation for evaluation in self.evaluations}


def read_run(folder: Path) -> RunRecord:
    """Reads a run's folder. Raises DataError for a folder that is no run, and for one that has no step yet."""
    if not (folder / "config.yaml").is_file():
        raise DataError(f"{folder} is no run: it has no config.yaml; give runs/NAME, as `mimcl train` wrote it")
    config = read_yaml(folder / "config.yaml")
    try:
        with open_regular(folder / "metrics.jsonl") as file:
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        raise DataError(f"{folder} has no metrics.jsonl yet; try again after the first steps") from None
    except OSError as error:
        raise DataError(f"{folder}/metrics.jsonl cannot be read: {error}") from None
    parsed = [_parsed(line) for line in lines]
    # What follows the last line's end is torn, or being written.
    damaged = sum(1 for line, values in zip(lines[:-1], parsed, strict=False) if values is None and line.strip())
    rows = [values for values in parsed if values is not None]
    steps = _table(row for row in rows if "step" in row and "evaluation" not in row)
    if not len(steps):
        raise DataError(f"{folder}/metrics.jsonl has no line of a step; try again after the first steps")
    checkpoints, marks = sorted(checkpoint.candidates(folder / "checkpoints")), _marks(folder / "checkpoints")
    return RunRecord(
        folder,
        config,
        steps,
        _table(row for row in rows if "window" in row),
        _evaluations((row for row in rows if "evaluation" in row), marks.get("index") or ""),
        _counts(folder / "draw_counts.npy"),
        marks,
        checkpoints,
        _lines_in(folder / "quarantine.jsonl"),
        damaged,
    )


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict) or not _is_number(draw := values.get("draw")) or not 0 <= draw < _LARGEST:
        return None
    return values


def _table(lines: Iterable[dict[str, Any]]) -> Table:
    rows = list(lines)
    draws = np.array([row["draw"] for row in rows], np.int64)
    # In order already, but for files that somebody put together; of lines of the same draw the last one counts.
    _, last = np.unique(draws[::-1], return_index=True)
    kept = len(rows) - 1 - last
    names: dict[str, None] = {}
    for row in rows:
        if row.keys() - names.keys():
            names |= dict.fromkeys(row)
        if len(names) > _MOST_COLUMNS:
            break
    columns = {name: _numbers([row.get(name) for row in rows])[kept] for name in names if name not in _NO_COLUMN}
    if rows and "step" in rows[0]:
        columns["step"] = _numbers([row.get("step") for row in rows])[kept]
    return Table(draws[kept], columns)


def _numbers(values: list[Any]) -> Values:
    try:
        numbers = np.array(values, np.float64)
        if numbers.ndim == 1:
            return np.where(np.isfinite(numbers), numbers, np.nan)
    except (TypeError, ValueError, OverflowError):
        pass
    return np.array([float(value) if _is_number(value) else np.nan for value in values])


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1e300  # false for NaN as well


def _evaluations(rows: Iterable[dict[str, Any]], own_data: str) -> list[Evaluation]:
    found = {}
    for row in rows:
        values = row.get("values")
        numbers = {str(k): float(v) for k, v in values.items() if _is_number(v)} if isinstance(values, Mapping) else {}
        if not numbers:
            continue
        evaluation = Evaluation(
            str(row["evaluation"]),
            json.dumps(row.get("settings") or {}, sort_keys=True),
            str(row.get("index") or own_data),
            str(row.get("data") or ""),
            int(row["draw"]),
            str(row.get("checkpoint") or ""),
            numbers,
        )
        found[evaluation.protocol, evaluation.draw] = evaluation
    return sorted(found.values(), key=lambda evaluation: evaluation.draw)


def _counts(path: Path) -> NDArray[np.uint32] | None:
    try:
        with open_regular(path):  # mapped, since a run that has just ended still holds its own
            counts = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return counts if counts.ndim == 1 and counts.dtype == np.uint32 and len(counts) else None


def _marks(checkpoints: Path) -> dict[str, str | None]:
    try:
        marks = checkpoint.newest(checkpoints, checkpoint.read_meta, lambda line: None).get("fingerprints")
    except CheckpointError:
        return {}
    return dict(marks) if isinstance(marks, Mapping) else {}


def _lines_in(path: Path) -> int:
    try:
        with open_regular(path) as file:
            return sum(1 for line in file if line.strip())
    except OSError:
        return 0
