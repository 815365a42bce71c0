"""Record evaluation results in metrics.jsonl, TensorBoard and trackers, and print them as a table."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mimcl.cli.console import console, warn
from mimcl.cli.encoders.encoder import Encoder
from mimcl.cli.evaluate.labelled import UNSEEN
from mimcl.cli.evaluate.results_file import SPREAD, UNTRAINED, format_settings, format_value, is_share
from mimcl.cli.run.trackers import existing_trackers
from mimcl.model.jsonl import add_line
from mimcl.model.run_log import Sink, TensorBoard
from mimcl.pipeline.files import DataError, remedy
from mimcl.pipeline.index import ShardIndex

# How a result was obtained, and what it can be at most; no measure of the encoder.
_DETAILS = ("learning_rate", "held_out", "held_out_lowest", "dimensions")


@dataclass(frozen=True)
class Result:
    """Accuracies on the val images, in [0, 1], by name, and everything they depend on; or ranks, without labels.

    NAME_std is the standard deviation of NAME, learning_rate a learning rate, held_out... accuracies on train images.
    rank_me and lidar are effective numbers of dimensions, of `dimensions`.
    """

    evaluation: str  # knn, linear, attentive, few_shot, finetune or rank
    checkpoint: Path
    data: str  # folder or URL, without credentials
    train: int  # number of train images: of labelled ones, or for ranks of all if they are of this split, else 0
    val: int  # number of val images: of labelled ones of classes that train has, or as above
    classes: int  # 0 for ranks
    settings: dict[str, Any]  # everything else that the values depend on
    trained: dict[str, float]
    untrained: dict[str, float] = field(default_factory=dict)  # of the run's initial weights; empty if not measured
    unseen: int = 0  # number of val images skipped since train does not have their class

    @property
    def images(self) -> dict[str, int]:
        """The number of images of each split that was used."""
        return {split: count for split, count in (("train", self.train), ("val", self.val)) if count}

    def standard_error(self, accuracy: float) -> float:
        """The standard error of an accuracy p on M val images, sqrt(p (1 - p) / M)."""
        return math.sqrt(accuracy * (1 - accuracy) / self.val)


def record(encoder: Encoder, result: Result, index: ShardIndex) -> None:
    """Append the result to `encoder.home`/metrics.jsonl, and send it to TensorBoard and the run's trackers.

    The line has the keys evaluation, draw, checkpoint, data, index (fingerprint of the evaluated split), settings,
    values (accuracies or ranks) and details. If an evaluation is repeated, its last line counts. Only for rank 0.
    Raises DataError when the line cannot be written.
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
        "data": index.shown,
        "index": index.fingerprint,
        "settings": result.settings | result.images | left_out,
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
    images = " and ".join(f"{count:,} {split}" for split, count in result.images.items())
    classes = f", {result.classes:,} classes" if result.classes else ""
    console.print(f"{images} images of {result.data}{classes}")
    if result.unseen:
        console.print(f"skipped: {result.unseen:,} val images of classes without train images")
    encoders = {"trained": result.trained} | ({"untrained": result.untrained} if result.untrained else {})
    console.print(f"{'':16}" + "".join(f"{name:>17}" for name in encoders))
    for name in result.trained:
        if not name.endswith(SPREAD):
            console.print(f"{name:16}" + "".join(f"{_cell(result, values, name):>17}" for values in encoders.values()))
    if not result.classes:
        console.print("effective number of dimensions that the features use")
        return
    has_spread = any(name.endswith(SPREAD) for name in result.trained)
    spread = f"standard deviation over {result.settings['seeds']} subsets" if has_spread else "standard error"
    console.print(f"accuracy on the val images ± {spread}")


def _cell(result: Result, values: dict[str, float], name: str) -> str:
    value = values[name]
    if name in ("learning_rate", "dimensions"):
        return f"{value:g}"
    if name in _DETAILS or not is_share(name):
        return format_value(name, value)
    spread = values.get(name + SPREAD, result.standard_error(value))
    return f"{100 * value:.1f} ± {100 * spread:.1f} %"
