"""What is measured while training, and the files it goes to."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Mapping
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


class FlagReader:
    """Reads a device flag of each step one step late, so that the host never waits for the step it has just queued."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._pending: tuple[Tensor, torch.cuda.Event | None] | None = None
        self._raised = 0
        self.in_a_row = 0  # raised flags, up to the last one read

    def push(self, flag: Tensor) -> None:
        """Starts copying this step's flag to the host and reads the one before."""
        earlier = self._pending
        host = torch.empty_like(flag, device="cpu", pin_memory=self._cuda).copy_(flag, non_blocking=True)
        event = None
        if self._cuda:
            event = torch.cuda.Event()
            event.record()
        self._pending = (host, event)
        self._read(earlier)

    def settle(self) -> int:
        """Reads the last flag too; returns how many were raised since the last call."""
        self._read(self._pending)
        self._pending = None
        raised, self._raised = self._raised, 0
        return raised

    def _read(self, pending: tuple[Tensor, torch.cuda.Event | None] | None) -> None:
        if pending is None:
            return
        host, event = pending
        if event is not None:
            event.synchronize()
        raised = bool(host)
        self._raised += raised
        self.in_a_row = self.in_a_row + 1 if raised else 0


class RunLog:
    """metrics.jsonl, a line an event, and TensorBoard. One writer a run."""

    def __init__(self, folder: Path, draw: int) -> None:
        """Opens the files for going on at `draw`; lines of a part that will be repeated are dropped."""
        from torch.utils.tensorboard import SummaryWriter

        path = folder / "metrics.jsonl"
        if path.exists():
            # A step's line stays when its step is done at `draw`; a window's when the window has begun before it.
            kept = [line for line in path.read_text().splitlines() if _belongs_before(line, draw)]
            aside = path.with_name(path.name + ".tmp")
            with open(aside, "w") as file:
                file.writelines(line + "\n" for line in kept)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
        self._lines = open(path, "a", buffering=1)  # noqa: SIM115 - closed by close()
        self._board = SummaryWriter(str(folder), purge_step=draw + 1)

    def write(self, values: Mapping[str, Any]) -> None:
        """Writes one line; numbers go to TensorBoard as well, at the line's draw."""
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        self._lines.write(json.dumps(finite) + "\n")
        for name, value in finite.items():
            if isinstance(value, int | float) and name not in ("step", "draw", "window"):
                self._board.add_scalar(name, value, values["draw"])

    def close(self) -> None:
        self._lines.close()
        self._board.close()


def _belongs_before(line: str, draw: int) -> bool:
    try:
        values = json.loads(line)
        return values["draw"] < draw if "window" in values else values["draw"] <= draw
    except (ValueError, TypeError, KeyError):  # the last line of a run that was killed
        return False
