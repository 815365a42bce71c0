"""The files that a run's figures go to: metrics.jsonl, a line an event, and TensorBoard's. One writer a run."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any


class RunLog:
    """metrics.jsonl and TensorBoard's events. A full disk delays them, it stops nothing and loses nothing."""

    def __init__(self, folder: Path, draw: int, on_trouble: Callable[[str], None]) -> None:
        """Opens the files for going on at `draw`; lines of a part that will be repeated are dropped.

        `on_trouble` is told once in one line when something cannot be written.
        """
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        path = folder / "metrics.jsonl"
        keep_lines(path, lambda values: _belongs_before(values, draw))
        self._lines = LineFile(path, on_trouble)
        # TensorBoard's own writer would lose what a full disk refuses, and print a traceback from its thread.
        self._events = RecordWriter(AppendedFile(folder / f"events.out.tfevents.{draw:012d}", on_trouble))
        self._add_event(Event(file_version="brain.Event:2"))
        # What earlier files have from here on, TensorBoard drops.
        self._add_event(Event(step=draw + 1, session_log=SessionLog(status=SessionLog.START)))

    def write(self, values: Mapping[str, Any]) -> None:
        """Writes one line; numbers go to TensorBoard as well, at the line's draw."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        self._lines.add([finite])
        numbers = [
            Summary.Value(tag=name, simple_value=value)
            for name, value in finite.items()
            if isinstance(value, int | float) and name not in ("step", "draw", "window")
        ]
        self._add_event(Event(step=values["draw"], summary=Summary(value=numbers)))

    def sync(self) -> None:
        """Brings the lines onto the disk: a checkpoint must not outlive them. Raises OSError."""
        self._lines.sync()

    def close(self) -> None:
        """Tries once more; lines that cannot be written even now are lost."""
        self._lines.flush()
        self._events.flush()

    def _add_event(self, event: Any) -> None:
        event.wall_time = time.time()  # of TensorBoard's axis, nothing depends on it
        self._events.write(event.SerializeToString())


class AppendedFile:
    """Bytes at the end of a file. What a full disk does not take is kept, and tried again before the next."""

    def __init__(self, path: Path, on_trouble: Callable[[str], None]) -> None:
        self._path, self._on_trouble = path, on_trouble
        self._unwritten, self._in_trouble = b"", False

    def write(self, data: bytes) -> None:
        """Never raises OSError; `on_trouble` is told once until there is room again."""
        self._unwritten += data
        if not self._unwritten:
            return
        try:
            with open(self._path, "ab", buffering=0) as file:
                while self._unwritten:
                    self._unwritten = self._unwritten[file.write(self._unwritten) :]
            self._in_trouble = False
        except OSError as error:
            if not self._in_trouble:
                self._on_trouble(
                    f"{self._path} cannot be written ({error.strerror}); its lines are kept and tried again"
                )
            self._in_trouble = True

    def flush(self) -> None:
        """Tries again to write what is left from before."""
        self.write(b"")

    def sync(self) -> None:
        """Brings what was written onto the disk; may be called from another thread. Raises OSError."""
        if self._path.exists():
            with open(self._path, "rb") as file:
                os.fsync(file.fileno())


class LineFile(AppendedFile):
    """The same for lines of JSON."""

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes a line for each row."""
        self.write(b"".join(json.dumps(row).encode() + b"\n" for row in rows))


def keep_lines(path: Path, belongs: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    """Drops the lines of a JSON-lines file that do not belong, and what is no whole line; returns those kept."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    kept = [(line, values) for line in lines if (values := _parsed(line)) and belongs(values)]
    aside = path.with_name(path.name + ".tmp")
    with open(aside, "wb") as file:
        file.writelines(line + b"\n" for line, _ in kept)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
    return [values for _, values in kept]


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        values = json.loads(line)
    except ValueError:  # the last line of a run that was killed
        return None
    return values if isinstance(values, dict) and isinstance(values.get("draw"), int) else None


def _belongs_before(values: dict[str, Any], draw: int) -> bool:
    """A step's line stays when its step is done at `draw`; a window's when the window has begun before it."""
    return values["draw"] < draw if "window" in values else values["draw"] <= draw
