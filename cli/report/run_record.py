"""What a run wrote, as arrays, and the figures that follow from it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mimcl.cli.evaluate.results_file import SPREAD, UNTRAINED
from mimcl.cli.report.curves import Values


@dataclass(frozen=True)
class Table:
    """Lines of one kind, sorted by draw, as columns of equal length; NaN where a line has no number."""

    draw: NDArray[np.int64]
    columns: dict[str, Values]

    def __len__(self) -> int:
        return len(self.draw)

    def __getitem__(self, name: str) -> Values:
        """Return a column; all NaN if no line has it."""
        return self.columns.get(name, np.full(len(self), np.nan))

    def has(self, name: str) -> bool:
        """Whether any line has a number in this column."""
        return name in self.columns and bool(np.isfinite(self.columns[name]).any())


@dataclass(frozen=True)
class EvaluationKey:
    """What an evaluation's values depend on; only values with the same key may be averaged."""

    name: str
    settings: str  # JSON with sorted keys
    index: str  # fingerprint of the evaluated split; for --online-knn that of the run's data


@dataclass(frozen=True)
class Evaluation:
    """A line of metrics.jsonl with the values of an evaluation, which are shares by name."""

    key: EvaluationKey
    draw: int
    checkpoint: str
    values: dict[str, float]

    @property
    def accuracies(self) -> dict[str, float]:
        """The accuracies of the trained encoder, without those of the untrained one and without standard deviations."""
        return {
            name: value
            for name, value in self.values.items()
            if not name.startswith(UNTRAINED) and not name.endswith(SPREAD)
        }


@dataclass(frozen=True)
class RunRecord:
    """All that a report shows of a run, except pictures and labels."""

    folder: Path
    config: dict[str, Any]  # by dotted keys
    steps: Table
    windows: Table
    evaluations: list[Evaluation]  # sorted by draw; the last line for each key and draw
    counts: NDArray[np.uint32] | None  # how often each image had been drawn at the last checkpoint
    fingerprints: dict[str, str | None]  # of the data, from the newest checkpoint; empty without any
    checkpoints: list[Path]  # oldest first
    bad_samples: int
    damaged_lines: int  # of metrics.jsonl

    @cached_property
    def seconds(self) -> Values:
        """Training time at each line of steps, from the logged rates: metrics.jsonl has no clock, for reproducibility.

        A line's images_per_second is the mean since the line before, so that took draws / rate seconds. Start-up, trial
        steps and pauses between stop and resume are not counted. Lines without a rate get the run's median.
        """
        rates = self.steps["images_per_second"]
        rates = np.where(rates > 0, rates, np.nan)
        known = rates[np.isfinite(rates)]
        rates = np.where(np.isfinite(rates), rates, np.median(known) if len(known) else np.nan)
        return np.cumsum(np.diff(self.steps.draw, prepend=0) / rates)

    def seconds_at(self, draws: NDArray[np.int64] | Values) -> Values:
        """Training time at each of these draws."""
        return np.interp(draws, np.concatenate([[0], self.steps.draw]), np.concatenate([[0.0], self.seconds]))

    @property
    def images(self) -> int | None:
        """The number of images that the run draws from, if draw_counts.npy is known."""
        return None if self.counts is None else len(self.counts)

    @property
    def draws(self) -> int:
        """The last logged draw."""
        return int(self.steps.draw[-1])

    @property
    def final_loss(self) -> float:
        """The last finite loss: a mean over the steps since the line before."""
        losses = self.steps["loss"]
        losses = losses[np.isfinite(losses)]
        return float(losses[-1]) if len(losses) else math.nan

    @property
    def data_wait(self) -> float:
        """Share of the training time spent waiting for data."""
        seconds, waits = np.diff(self.seconds, prepend=0.0), self.steps["data_wait"]
        known = np.isfinite(seconds) & np.isfinite(waits)
        return float(np.average(waits[known], weights=seconds[known])) if seconds[known].sum() > 0 else math.nan

    @property
    def throughput(self) -> float:
        """Images per second over the whole run."""
        return self.draws / float(self.seconds[-1]) if self.seconds[-1] > 0 else math.nan

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    def last_evaluations(self) -> dict[EvaluationKey, Evaluation]:
        """The latest evaluation for each key."""
        return {evaluation.key: evaluation for evaluation in self.evaluations}
