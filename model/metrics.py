"""What is measured while training, and the files it goes to."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Report:
    """What is known at a logging step; loss and rates are means since the one before."""

    step: int
    draw: int
    loss: float
    lr: float
    grad_norm: float  # of this step
    images_per_second: float
    data_wait: float  # share of the time spent waiting for the stream
    nonfinite_steps: int  # skipped since the report before


class Meter:
    """Counts what is taken from an iterator and how long the taking waited."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._waited = 0.0
        self.taken = 0

    def waiting(self, iterator: Iterator[T]) -> Iterator[T]:
        while True:
            before = time.perf_counter()
            item = next(iterator)
            self._waited += time.perf_counter() - before
            self.taken += 1
            yield item

    def elapsed(self) -> float:
        return time.perf_counter() - self._started

    def share_waited(self) -> float:
        return self._waited / self.elapsed()


@dataclass(frozen=True)
class Outcome:
    """What became of a step, known on all ranks alike one step later. Counts and loss are over all ranks."""

    step: int
    lr: float
    loss: float
    grad_norm: float
    stop: bool  # some rank was asked to stop
    bad: int  # bad samples met

    @property
    def finite(self) -> bool:
        return math.isfinite(self.grad_norm)


class OutcomeReader:
    """Reads a step's figures on the device one step late: the host never waits for the step it has just queued."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._pending: tuple[int, float, Tensor, torch.cuda.Event | None] | None = None

    def push(self, step: int, lr: float, figures: Tensor) -> list[Outcome]:
        """Starts copying `figures` (loss, grad_norm, stop, bad) of this step; returns the outcome of the one before."""
        earlier = self.settle()
        host = torch.empty_like(figures, device="cpu", pin_memory=self._cuda).copy_(figures, non_blocking=True)
        event = None
        if self._cuda:
            event = torch.cuda.Event()
            event.record()
        self._pending = (step, lr, host, event)
        return earlier

    def settle(self) -> list[Outcome]:
        """The outcome of the last step pushed, if it was not yet returned; waits for it."""
        if self._pending is None:
            return []
        step, lr, host, event = self._pending
        self._pending = None
        if event is not None:
            event.synchronize()
        loss, grad_norm, stop, bad = host.tolist()
        return [Outcome(step, lr, loss, grad_norm, stop > 0, round(bad))]


class RunLog:
    """metrics.jsonl, a line an event, and TensorBoard. One writer a run; a full disk delays lines, it stops nothing."""

    def __init__(self, folder: Path, draw: int, on_trouble: Callable[[str], None]) -> None:
        """Opens the files for going on at `draw`; lines of a part that will be repeated are dropped.

        `on_trouble` is told once in one line when something cannot be written.
        """
        from torch.utils.tensorboard import SummaryWriter

        path, self._on_trouble = folder / "metrics.jsonl", on_trouble
        keep_lines(path, lambda values: _belongs_before(values, draw))
        self._lines = LineFile(path, on_trouble)
        self._board: SummaryWriter | None = SummaryWriter(str(folder), purge_step=draw + 1)

    def write(self, values: Mapping[str, Any]) -> None:
        """Writes one line; numbers go to TensorBoard as well, at the line's draw."""
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        self._lines.write([finite])
        if self._board is None:
            return
        try:
            for name, value in finite.items():
                if isinstance(value, int | float) and name not in ("step", "draw", "window"):
                    self._board.add_scalar(name, value, values["draw"])
        except OSError as error:  # TensorBoard's writer does not recover
            self._board = None
            self._on_trouble(f"TensorBoard's file cannot be written ({error.strerror}); it ends here")

    def close(self) -> None:
        """Ends the files; lines that cannot be written even now are lost."""
        self._lines.write([])
        if self._board is not None:
            with suppress(OSError):
                self._board.close()


class LineFile:
    """Lines of JSON at the end of a file. What a full disk does not take is kept, and tried again before the next."""

    def __init__(self, path: Path, on_trouble: Callable[[str], None]) -> None:
        self._path, self._on_trouble = path, on_trouble
        self._unwritten, self._in_trouble = b"", False

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._unwritten += b"".join(json.dumps(row).encode() + b"\n" for row in rows)
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
