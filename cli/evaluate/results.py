"""What evaluations find, the table that shows it, and where it is kept: metrics.jsonl, TensorBoard, trackers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mimcl.cli.console import console, warn
from mimcl.cli.encoders.encoder import Encoder
from mimcl.cli.evaluate.results_file import SPREAD, UNTRAINED, settings_in_words
from mimcl.cli.run.trackers import trackers_beside
from mimcl.model.jsonl import add_line
from mimcl.model.run_log import TensorBoard
from mimcl.pipeline.files import DataError
from mimcl.pipeline.index import ShardIndex

_DETAILS = ("learning_rate", "held_out", "held_out_lowest")  # that led to a value: no quality of the encoder


@dataclass(frozen=True)
class Result:
    """Shares, 0 to 1, of val images that an evaluation gives their own class, by name, and what else led to them.

    NAME_std is the spread of NAME; learning_rate is what its name says; held_out... are shares of train images.
    """

    evaluation: str  # knn, linear, few_shot or finetune
    checkpoint: Path
    data: str  # folder or URL, as it may be printed
    train: int  # labelled images learned from
    val: int  # labelled images judged on
    classes: int
    settings: dict[str, Any]  # all else that the values depend on
    trained: dict[str, float]
    untrained: dict[str, float] = field(default_factory=dict)  # of the weights the run began with; empty: not measured

    def standard_error(self, share: float) -> float:
        """Of a share of the val images: sqrt(p (1 - p) / M)."""
        return math.sqrt(share * (1 - share) / self.val)


def record(encoder: Encoder, result: Result, judged_on: ShardIndex) -> None:
    """Adds a line to `encoder.home`/metrics.jsonl: the values by name, and all that they depend on.

    A line has evaluation, draw, checkpoint, data, index (the val split's fingerprint), settings, values (shares) and
    details. Of several lines alike but for the last two the last one counts. For rank 0 alone.
    Raises DataError where the line cannot be written.
    """
    encoder.home.mkdir(parents=True, exist_ok=True)
    found = result.trained | {UNTRAINED + name: value for name, value in result.untrained.items()}
    details = {name: value for name, value in found.items() if name.removeprefix(UNTRAINED) in _DETAILS}
    values = {name: value for name, value in found.items() if name not in details}
    line = {
        "evaluation": result.evaluation,
        "draw": encoder.draw,
        "checkpoint": encoder.path.name,
        "data": judged_on.shown,
        "index": judged_on.fingerprint,
        "settings": result.settings | {"train": result.train, "val": result.val},
        "values": values,
        "details": details,
    }
    try:
        add_line(encoder.home / "metrics.jsonl", line)
    except OSError as error:
        raise DataError(
            f"the result cannot be written to {encoder.home / 'metrics.jsonl'} ({error.strerror}); make room and give "
            "the same command again, which goes on from what is there"
        ) from None
    events = encoder.home / "evaluation"
    events.mkdir(exist_ok=True)
    for sink in (TensorBoard(events, encoder.draw, warn), *trackers_beside(encoder.home, warn)):
        sink.write(encoder.draw, {f"{result.evaluation}/{name}": value for name, value in values.items()})
        sink.close()


def show(result: Result) -> None:
    """Prints the table: a row for each value, trained beside untrained. For rank 0 alone."""
    console.print(f"{result.evaluation} of {result.checkpoint} ({settings_in_words(result.settings)})")
    console.print(
        f"learned from {result.train:,} train images of {result.data}, judged on {result.val:,} val images, "
        f"{result.classes:,} classes"
    )
    encoders = {"trained": result.trained} | ({"untrained": result.untrained} if result.untrained else {})
    console.print(f"{'':16}" + "".join(f"{name:>17}" for name in encoders))
    for name in result.trained:
        if not name.endswith(SPREAD):
            console.print(f"{name:16}" + "".join(f"{_cell(result, values, name):>17}" for values in encoders.values()))
    spread = any(name.endswith(SPREAD) for name in result.trained)
    console.print(f"share of val images given their own class ± its {'spread' if spread else 'standard error'}")


def _cell(result: Result, values: dict[str, float], name: str) -> str:
    value = values[name]
    if name in _DETAILS:
        return f"{value:g}" if name == "learning_rate" else f"{100 * value:.1f} %"
    spread = values.get(name + SPREAD, result.standard_error(value))
    return f"{100 * value:.1f} ± {100 * spread:.1f} %"
