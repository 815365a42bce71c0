"""Where a run's figures go: metrics.jsonl, a line an event, and the sinks that show them, such as TensorBoard."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from mimcl.model.jsonl import AppendedFile, LineFile, keep_lines


class Sink(Protocol):
    """Shows numbers over draws. What it cannot show it leaves out with a word; it never stops the run."""

    def write(self, draw: int, numbers: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class RunLog:
    """The one writer of a run's figures."""

    def __init__(self, folder: Path, draw: int, warn: Callable[[str], None], sinks: Sequence[Sink]) -> None:
        """Opens the files for going on at `draw`; lines of a part that will be repeated are dropped.

        `warn` is told once in one line when something cannot be written.
        """
        path = folder / "metrics.jsonl"
        keep_lines(path, lambda values: _belongs_before(values, draw))
        self._lines = LineFile(path, warn)
        self._sinks = sinks

    def write(self, line: Mapping[str, Any], numbers: Mapping[str, float] | None = None) -> None:
        """Writes one line, and to the sinks its numbers, or those given instead, at the line's draw."""
        line = {name: None if _not_finite(value) else value for name, value in line.items()}
        self._lines.add([line])
        if numbers is None:
            numbers = {
                name: value
                for name, value in line.items()
                if isinstance(value, int | float) and name not in ("step", "draw", "window")
            }
        for sink in self._sinks:
            sink.write(line["draw"], numbers)

    def sync(self) -> None:
        """Brings the lines onto the disk: a checkpoint must not outlive them. Raises OSError."""
        self._lines.sync()

    def close(self) -> None:
        """Tries once more; lines that cannot be written even now are lost."""
        self._lines.flush()
        for sink in self._sinks:
            sink.close()


class TensorBoard:
    """Event files in a folder, going on at `draw`: what earlier files have from there on, TensorBoard drops.

    TensorBoard's own writer would lose what a full disk refuses, and print a traceback from its thread.
    """

    def __init__(self, folder: Path, draw: int, warn: Callable[[str], None]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._events = RecordWriter(AppendedFile(folder / f"events.out.tfevents.{draw:012d}", warn))
        self._add(Event(file_version="brain.Event:2"))
        self._add(Event(step=draw + 1, session_log=SessionLog(status=SessionLog.START)))

    def write(self, draw: int, numbers: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in numbers.items()]
        self._add(Event(step=draw, summary=Summary(value=values)))

    def close(self) -> None:
        self._events.flush()

    def _add(self, event: Any) -> None:
        event.wall_time = time.time()  # of TensorBoard's axis, nothing depends on it
        self._events.write(event.SerializeToString())


def _not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _belongs_before(values: dict[str, Any], draw: int) -> bool:
    """A step's line stays when its step is done at `draw`; a window's when the window has begun before it."""
    return values["draw"] < draw if "window" in values else values["draw"] <= draw
