"""Read a run's folder without writing anything, even while the run is training."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from mimcl.cli.config import read_yaml
from mimcl.cli.report.run_record import Evaluation, EvaluationKey, RunRecord, Table
from mimcl.model import checkpoint
from mimcl.model.checkpoint import CheckpointError
from mimcl.model.checkpoint_path import named_run
from mimcl.pipeline.files import DataError, open_regular
from mimcl.pipeline.map_file import map_file, npy_view

_MAX_COLUMNS = 200
_NOT_COLUMNS = {"draw", "window", "digest"}
_MAX_DRAW = 2**53  # float64 holds every whole number up to here


def read_run(folder: Path) -> RunRecord:
    """Read the run that `folder` names. Raises DataError if it is not a run, or has no step yet."""
    folder = named_run(folder)
    if not (folder / "config.yaml").is_file():
        raise DataError(f"{folder} is not a run (no config.yaml); give the folder of a training run, runs/NAME")
    config = read_yaml(folder / "config.yaml")
    try:
        with open_regular(folder / "metrics.jsonl") as file:
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        raise DataError(f"{folder} has no metrics.jsonl yet; try again after the first steps") from None
    except OSError as error:
        raise DataError(f"{folder}/metrics.jsonl cannot be read: {error}") from None
    parsed = [_parse(line) for line in lines]
    # The text after the last newline is not counted as damaged: the run may be writing it.
    damaged = sum(1 for line, values in zip(lines[:-1], parsed, strict=False) if values is None and line.strip())
    rows = [values for values in parsed if values is not None]
    steps = _table(row for row in rows if "step" in row and "evaluation" not in row)
    if not len(steps):
        raise DataError(f"{folder}/metrics.jsonl has no line of a step; try again after the first steps")
    fingerprints = _fingerprints(folder / "checkpoints")
    return RunRecord(
        folder,
        config,
        steps,
        _table(row for row in rows if "window" in row),
        _evaluations((row for row in rows if "evaluation" in row), fingerprints.get("index") or ""),
        _counts(folder / "draw_counts.npy"),
        fingerprints,
        sorted(checkpoint.candidates(folder / "checkpoints")),
        _count_lines(folder / "quarantine.jsonl"),
        damaged,
    )


def _parse(line: bytes) -> dict[str, Any] | None:
    """Return the values of a line, or None if it is not an object with a valid draw."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict) or not _is_number(draw := values.get("draw")) or not 0 <= draw < _MAX_DRAW:
        return None
    return values


def _table(lines: Iterable[dict[str, Any]]) -> Table:
    rows = list(lines)
    draws = np.array([row["draw"] for row in rows], np.int64)
    # Sorted already, unless files were concatenated by hand; the last line of each draw counts.
    _, last = np.unique(draws[::-1], return_index=True)
    kept = len(rows) - 1 - last
    names: dict[str, None] = {}
    for row in rows:
        if row.keys() - names.keys():
            names |= dict.fromkeys(row)
        if len(names) > _MAX_COLUMNS:
            break
    numbers = {
        name: np.array([float(value) if _is_number(value := row.get(name)) else np.nan for row in rows], np.float64)
        for name in names
        if name not in _NOT_COLUMNS
    }
    return Table(draws[kept], {name: column[kept] for name, column in numbers.items()})


def _is_number(value: Any) -> TypeGuard[float]:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1e300  # also false for NaN


def _evaluations(rows: Iterable[dict[str, Any]], run_index: str) -> list[Evaluation]:
    found = {}
    for row in rows:
        values = row.get("values")
        numbers = {str(k): float(v) for k, v in values.items() if _is_number(v)} if isinstance(values, Mapping) else {}
        if not numbers:
            continue
        settings = json.dumps(row.get("settings") or {}, sort_keys=True)
        key = EvaluationKey(str(row["evaluation"]), settings, str(row.get("index") or run_index))
        draw = int(row["draw"])
        found[key, draw] = Evaluation(key, draw, str(row.get("checkpoint") or ""), numbers)
    return sorted(found.values(), key=lambda evaluation: evaluation.draw)


def _counts(path: Path) -> NDArray[np.uint32] | None:
    try:
        with open_regular(path) as file:  # mapped, to save memory: a run that has just ended still holds its own counts
            counts = npy_view(map_file(file))
    except (OSError, ValueError):
        return None
    return counts if counts.ndim == 1 and counts.dtype == np.uint32 and len(counts) else None


def _fingerprints(checkpoints: Path) -> dict[str, str | None]:
    try:
        found = checkpoint.newest(checkpoints, checkpoint.read_meta, lambda line: None).get("fingerprints")
    except CheckpointError:
        return {}
    return dict(found) if isinstance(found, Mapping) else {}


def _count_lines(path: Path) -> int:
    try:
        with open_regular(path) as file:
            return sum(1 for line in file if line.strip())
    except OSError:
        return 0
