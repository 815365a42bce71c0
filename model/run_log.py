"""A run's metrics: metrics.jsonl, one line per event, and sinks that display them, such as TensorBoard."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from mimcl.model.jsonl import JsonlWriter, keep_lines


class Sink(Protocol):
    """Displays values over draws. It reports its own errors with a warning and never stops the run."""

    def write(self, draw: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class RunLog:
    """The only writer of a run's metrics."""

    def __init__(self, folder: Path, draw: int, warn: Callable[[str], None], sinks: Sequence[Sink]) -> None:
        """Open metrics.jsonl for a run that resumes at `draw`; lines of steps that will be repeated are dropped.

        `warn` is called once, with one line, when metrics.jsonl cannot be written.
        """
        path = folder / "metrics.jsonl"
        keep_lines(path, lambda values: _precedes(values, draw))
        self._lines = JsonlWriter(path, warn)
        self._sinks = sinks

    def write(self, line: Mapping[str, Any], values: Mapping[str, float] | None = None) -> None:
        """Write one line, and its numbers, or `values` instead, to the sinks at the line's draw."""
        line = {name: None if _not_finite(value) else value for name, value in line.items()}
        self._lines.write([line])
        if values is None:
            values = {
                name: value
                for name, value in line.items()
                if isinstance(value, int | float) and name not in ("step", "draw", "window")
            }
        for sink in self._sinks:
            sink.write(line["draw"], values)

    def sync(self) -> None:
        """Flush the lines to disk: a checkpoint must not outlive them. Raises OSError."""
        self._lines.sync()

    def close(self) -> None:
        """Retry lines that could not be written before; those that still cannot are lost."""
        self._lines.flush()
        for sink in self._sinks:
            sink.close()


class TensorBoard:
    """Event files in a folder. A resume at draw `resumed_at` hides the values that earlier files have after it.

    After an error, such as a full disk, there is one warning and nothing more is written.
    """

    def __init__(self, folder: Path, warn: Callable[[str], None], resumed_at: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._folder, self._warn = folder, warn
        self._writer: SummaryWriter | None = None
        self._descriptor = -1  # of the folder, if TensorBoard cannot open its path
        with self._errors_as_warning():
            path = str(folder)
            # TensorBoard encodes paths in UTF-8, and Python by the locale.
            if os.fsencode(path) != path.encode("utf-8", "surrogatepass"):
                folder.mkdir(parents=True, exist_ok=True)
                self._descriptor = os.open(folder, os.O_RDONLY)
                path = f"/dev/fd/{self._descriptor}"
            self._writer = SummaryWriter(path, purge_step=None if resumed_at is None else resumed_at + 1)

    def write(self, draw: int, values: Mapping[str, float]) -> None:
        with self._errors_as_warning():
            if self._writer:
                for name, value in values.items():
                    self._writer.add_scalar(name, value, draw)
                self._writer.flush()

    def close(self) -> None:
        with self._errors_as_warning():
            if self._writer:
                self._writer.close()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    @contextmanager
    def _errors_as_warning(self) -> Iterator[None]:
        """SummaryWriter writes in a thread, which ends at the first error; each later call raises that error again."""
        try:
            yield
        except OSError as error:
            self._writer = None
            self._warn(
                f"TensorBoard events in {self._folder} cannot be written ({error.strerror}); TensorBoard is disabled "
                "for the rest of this run, metrics.jsonl has everything"
            )


def _not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _precedes(values: dict[str, Any], draw: int) -> bool:
    """Whether a line is from before `draw`: of a step that has ended by then, or a window that began before it."""
    return values["draw"] < draw if "window" in values else values["draw"] <= draw
