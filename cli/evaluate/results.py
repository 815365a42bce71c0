"""Record evaluation results in metrics.jsonl, TensorBoard and trackers, and print them as a table."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mimcl.cli.console import console, warn
from mimcl.cli.encoders.encoder import Encoder
from mimcl.cli.evaluate.labelled import UNSEEN
from mimcl.cli.evaluate.results_file import SPREAD, UNTRAINED, format_settings
from mimcl.cli.run.trackers import existing_trackers
from mimcl.model.jsonl import add_line
from mimcl.model.run_log import Sink, TensorBoard
from mimcl.pipeline.files import DataError, remedy
from mimcl.pipeline.index import ShardIndex

_DETAILS = ("learning_rate", "held_out", "held_out_lowest")  # how a result was obtained; no measure of the encoder


@dataclass(frozen=True)
class Result:
    """Accuracies on the val images, in [0, 1], by name, and everything they depend on.

    NAME_std is the standard deviation of NAME, learning_rate a learning rate, held_out... accuracies on train images.
    """

    evaluation: str  # knn, linear, few_shot or finetune
    checkpoint: Path
    data: str  # folder or URL, without credentials
    train: int  # number of labelled train images
    val: int  # number of labelled val images, of classes that train has
    classes: int
    settings: dict[str, Any]  # everything else that the values depend on
    trained: dict[str, float]
    untrained: dict[str, float] = field(default_factory=dict)  # of the run's initial weights; empty if not measured
    unseen: int = 0  # number of val images left out since train does not have their class

    def standard_error(self, accuracy: float) -> float:
        """The standard error of an accuracy p on M val images, sqrt(p (1 - p) / M)."""
        return math.sqrt(accuracy * (1 - accuracy) / self.val)


def record(encoder: Encoder, result: Result, val: ShardIndex) -> None:
    """Append the result to `encoder.home`/metrics.jsonl, and send it to TensorBoard and the run's trackers.

    The line has the keys evaluation, draw, checkpoint, data, index (fingerprint of the val split), settings, values
    (accuracies) and details. If an evaluation is repeated, its last line counts. Only for rank 0. Raises DataError when
    the line cannot be written.
    """
    encoder.home.mkdir(parents=True, exist_ok=True)
    measured = result.trained | {UNTRAINED + name: value for name, value in result.untrained.items()}
    details = {name: value for name, value in measured.items() if name.removeprefix(UNTRAINED) in _DETAILS}
    values = {name: value for name, value in measured.items() if name not in details}
    left_out = {UNSEEN: result.unseen} if result.unseen else {}
    line = {
        "evaluation": result.evaluation,
        "draw": encoder.draw,
        "checkpoint": encoder.path.name,
        "data": val.shown,
        "index": val.fingerprint,
        "settings": result.settings | {"train": result.train, "val": result.val} | left_out,
        "values": values,
        "details": details,
    }
    path = encoder.home / "metrics.jsonl"
    try:
        add_line(path, line)
    except OSError as error:
        raise DataError(
            f"cannot write the result to {path} ({error.strerror}); {remedy(error, 'make room')} and run the same "
            "command again"
        ) from None
    events = encoder.home / "evaluation"
    events.mkdir(exist_ok=True)
    sinks: list[Sink] = [TensorBoard(events, warn), *existing_trackers(encoder.home, warn)]
    for sink in sinks:
        sink.write(encoder.draw, {f"{result.evaluation}/{name}": value for name, value in values.items()})
        sink.close()


def print_result(result: Result) -> None:
    """Print a table with a row for each value, trained beside untrained."""
    console.print(f"{result.evaluation} of {result.checkpoint} ({format_settings(result.settings)})")
    console.print(f"{result.train:,} train and {result.val:,} val images of {result.data}, {result.classes:,} classes")
    if result.unseen:
        console.print(f"left out: {result.unseen:,} val images of classes without train images")
    encoders = {"trained": result.trained} | ({"untrained": result.untrained} if result.untrained else {})
    console.print(f"{'':16}" + "".join(f"{name:>17}" for name in encoders))
    for name in result.trained:
        if not name.endswith(SPREAD):
            console.print(f"{name:16}" + "".join(f"{_cell(result, values, name):>17}" for values in encoders.values()))
    has_spread = any(name.endswith(SPREAD) for name in result.trained)
    console.print(f"accuracy on the val images ± {'standard deviation' if has_spread else 'standard error'}")


def _cell(result: Result, values: dict[str, float], name: str) -> str:
    value = values[name]
    if name in _DETAILS:
        return f"{value:g}" if name == "learning_rate" else f"{100 * value:.1f} %"
    spread = values.get(name + SPREAD, result.standard_error(value))
    return f"{100 * value:.1f} ± {100 * spread:.1f} %"
