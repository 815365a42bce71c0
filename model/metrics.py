"""Measurements of a training: reports, outcomes of steps, and the share of the time spent waiting for data."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Report:
    """The figures of a logging step; loss and rates are means since the previous report."""

    step: int
    draw: int
    loss: float
    lr: float
    grad_norm: float  # of this step
    images_per_second: float
    data_wait: float  # share of the time spent waiting for the stream
    nonfinite_steps: int  # skipped since the previous report
    masking: dict[str, float]  # the masker's own figures, of the last micro-batch on this rank


class Meter:
    """Counts items and the time spent waiting for them."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._waited = self._apart = 0.0
        self.taken = 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count one item, and the time of the block as waiting."""
        before = time.perf_counter()
        yield
        self._waited += time.perf_counter() - before
        self.taken += 1

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count the time of the block."""
        before = time.perf_counter()
        yield
        self._apart += time.perf_counter() - before

    def elapsed(self) -> float:
        return time.perf_counter() - self._started - self._apart

    def share_waited(self) -> float:
        return self._waited / self.elapsed()


@dataclass(frozen=True)
class Outcome:
    """The outcome of a step, known on all ranks one step later. Counts and loss are over all ranks."""

    step: int
    lr: float
    loss: float
    grad_norm: float
    stop: bool  # some rank was asked to stop
    bad: int  # bad samples met
    measured: tuple[float, ...] = ()  # the sums of an observer

    @property
    def finite(self) -> bool:
        return math.isfinite(self.grad_norm)


class OutcomeReader:
    """Reads a step's figures from the device one step late, so that the host never waits for a step it just queued."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._pending: tuple[int, float, Tensor, torch.cuda.Event | None] | None = None

    def push(self, step: int, lr: float, figures: Tensor) -> list[Outcome]:
        """Start to copy `figures` (loss, grad_norm, stop, bad, measured ...); return the previous outcome."""
        earlier = self.flush()
        host = torch.empty_like(figures, device="cpu", pin_memory=self._cuda).copy_(figures, non_blocking=True)
        event = None
        if self._cuda:
            event = torch.cuda.Event()
            event.record()
        self._pending = (step, lr, host, event)
        return earlier

    def flush(self) -> list[Outcome]:
        """Return the outcome of the last step pushed, if it was not returned yet; wait for it."""
        if self._pending is None:
            return []
        step, lr, host, event = self._pending
        self._pending = None
        if event is not None:
            event.synchronize()
        loss, grad_norm, stop, bad, *measured = host.tolist()
        return [Outcome(step, lr, loss, grad_norm, stop > 0, round(bad), tuple(measured))]
