"""Where the results of evaluations go: metrics.jsonl of what was judged, TensorBoard's events beside it, trackers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mimcl.cli.console import warn
from mimcl.cli.encoder import Encoder
from mimcl.cli.trackers import trackers_beside
from mimcl.model.lines import LineFile
from mimcl.model.log import TensorBoard
from mimcl.pipeline.index import ShardIndex


def record(
    encoder: Encoder, evaluation: str, values: Mapping[str, float], settings: Mapping[str, Any], judged_on: ShardIndex
) -> None:
    """Adds a line to `encoder.home`/metrics.jsonl: shares from 0 to 1 by name, and all that they depend on.

    A line has evaluation, draw, checkpoint, data, index (the val split's fingerprint), settings and values. Of several
    lines alike but for the values the last one counts. For rank 0 alone.
    """
    encoder.home.mkdir(parents=True, exist_ok=True)
    line = {
        "evaluation": evaluation,
        "draw": encoder.draw,
        "checkpoint": encoder.path.name,
        "data": str(judged_on.root),
        "index": judged_on.fingerprint,
        "settings": dict(settings),
        "values": dict(values),
    }
    LineFile(encoder.home / "metrics.jsonl", warn).add([line])
    events = encoder.home / "evaluation"
    events.mkdir(exist_ok=True)
    for sink in (TensorBoard(events, encoder.draw, warn), *trackers_beside(encoder.home, warn)):
        sink.write(encoder.draw, {f"{evaluation}/{name}": value for name, value in values.items()})
        sink.close()
