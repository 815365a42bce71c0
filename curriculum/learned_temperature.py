"""A temperature that follows the losses: it rises as far images stop being costly.

theta = log tau goes down the gradient of J = E_p[loss] / mean loss - beta H(p), with p = p_tau over h in [0, 1] and
mean loss a constant. From dp_i/dtheta = p_i (h_i - E_p[h]) / tau and -log p_i = h_i / tau + log Z:

    dJ/dtheta = Cov_p(loss, h) / (tau * mean loss) - beta * Var_p(h) / tau^2

It rests where tau = beta * mean loss / (slope of loss on h). A window's draws come from its p, so its five sums (n, h,
loss, h * loss, h * h) estimate both terms. Window w moves on from window w-1 with the gradient of window w-2, whose
sums are complete on every rank long before window w is wanted; windows 0 and 1 have the temperature of r0.

Why waiting for sums never stops a run: a step's sums are known after the next step, so those of window w-2 after the
first step of window w-1. Its other steps, 3 or more, are what the stream and a decoder may be ahead of the training.

By default theta never falls. So it stays where it is while the learning rate warms up: no loss depends on h before
something is learned, and the entropy alone would raise it for good. For the same reason noise only ever raises it, in a
short window more than in a long one. The defaults of eta and beta come from a simulated learner, see
tools/bench/learned_temperature.py.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable
from concurrent.futures import Future
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mimcl.curriculum.config import CurriculumConfig
from mimcl.curriculum.hardness import Hardness
from mimcl.curriculum.temperature import UNIFORM_WITHIN, EffectiveFraction

_SUMS = 5
_KEPT = 3  # windows: the one whose steps are being counted, the next, and the one before, of which batches may remain


class Outcome(Protocol):
    """What became of a step of all ranks; `step` counts from 1."""

    @property
    def step(self) -> int: ...
    @property
    def finite(self) -> bool: ...
    @property
    def measured(self) -> tuple[float, ...]: ...


class Gradient(NamedTuple):
    """The two terms of dJ/dtheta."""

    loss: float = 0.0
    entropy: float = 0.0


class _Chosen(NamedTuple):
    """A window's theta, and the gradient that led to it."""

    theta: float
    gradient: Gradient


class LearnedTemperature:
    """The temperature of each window, from the losses of the windows before; all ranks hold the same.

    It is told of every step once and in order, by `add`, and is a pure function of what it was told. Windows that begin
    before draw `warm` move nothing. `curve` is the effective fraction of `distances` (N,). Raises ValueError for
    windows of fewer than 4 batches, and for an r0 that no temperature reaches, where only samples of one h are drawn
    and the gradient is 0 for ever.
    """

    def __init__(
        self, config: CurriculumConfig, distances: NDArray[np.float32], *, batch_size: int, warm: int = 0
    ) -> None:
        self._config, self._batch_size, self._warm = config, batch_size, warm
        self._window_length = config.window_length(len(distances), batch_size)
        self.curve = EffectiveFraction(Hardness(config, np.asarray(distances, np.float32)))
        if config.r0 <= self.curve.lowest:
            raise ValueError(
                f"curriculum.r0 is {config.r0}: --temp-schedule learned cannot leave the {self.curve.lowest:.3f} that "
                "the nearest images alone make here; choose a larger r0, or build fewer prototypes"
            )
        self._highest = math.log(self.curve.inverse(self.curve.uniform - UNIFORM_WITHIN))
        self._lowest = min(math.log(self.curve.inverse(config.r0)), self._highest)
        first = _Chosen(self._lowest, Gradient())
        self._chosen = {0: first, 1: first}
        self._sums = np.zeros(_SUMS)  # of the window before the newest that is known
        self._lock = threading.Lock()
        self._awaited: dict[int, Future[None]] = {}

    def measure(self, batch: Any, losses: Tensor) -> Tensor:
        """The five sums, float64 (5,), of a micro-batch with losses (n,), on their device and without waiting for it.

        Draws of the uniform phase do not come from p_tau and count for nothing.
        """
        if batch.window.phase != "curriculum":
            return torch.zeros(_SUMS, dtype=torch.float64, device=losses.device)
        h, loss = self._config.hardness(batch.distances).double(), losses.double()
        return torch.stack([torch.ones_like(h), h, loss, h * loss, h * h]).sum(1)

    def add(self, outcomes: Iterable[Outcome]) -> None:
        """Takes in what steps have measured; the last step of a window settles the temperature of the one after next.

        A step without a finite gradient adds nothing.
        """
        for outcome in outcomes:
            if outcome.finite:
                self._sums += outcome.measured
            if outcome.step * self._batch_size % self._window_length == 0:
                self._choose()

    def known(self, window: int) -> Future[None] | None:
        """Done once `window` has a temperature; None if it has one. From any thread."""
        with self._lock:
            return None if window <= max(self._chosen) else self._awaited.setdefault(window, Future())

    def temperature(self, window: int) -> float:
        """tau of a window near the steps of now. Raises LookupError when it is not yet known, or no longer."""
        return math.exp(self._chosen[window].theta)

    def gradient(self, window: int) -> Gradient:
        """What moved log tau to that of `window`, before it is multiplied by eta; zeros for windows 0 and 1."""
        return self._chosen[window].gradient

    def state_dict(self) -> dict[str, Any]:
        """What is known after the steps so far, some numbers."""
        chosen = {window: (kept.theta, *kept.gradient) for window, kept in self._chosen.items()}
        return {"window_length": self._window_length, "chosen": chosen, "sums": self._sums.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on as saved. Raises ValueError when windows had another length."""
        if state["window_length"] != self._window_length:
            raise ValueError(
                f"its temperature was learned in windows of {state['window_length']} draws, not of "
                f"{self._window_length}; leave curriculum.window as it was"
            )
        self._sums = np.array(state["sums"])
        self._chosen = {window: _Chosen(theta, Gradient(*terms)) for window, (theta, *terms) in state["chosen"].items()}

    def _choose(self) -> None:
        newest = max(self._chosen)
        gradient = Gradient()
        if (newest - 1) * self._window_length >= self._warm:
            gradient = objective_gradient(self._sums, self.temperature(newest - 1), self._config.learned_beta)
        before = self._chosen[newest].theta
        theta = before - self._config.learned_eta * sum(gradient)
        if not self._config.learned_may_fall:
            theta = max(theta, before)
        theta = min(max(theta, self._lowest), self._highest)
        kept = {window: self._chosen[window] for window in sorted(self._chosen)[1 - _KEPT :]}
        self._sums = np.zeros(_SUMS)
        with self._lock:
            self._chosen = kept | {newest + 1: _Chosen(theta, gradient)}
            awaited = self._awaited.pop(newest + 1, None)
        if awaited:
            awaited.set_result(None)


def objective_gradient(sums: NDArray[np.float64], tau: float, beta: float) -> Gradient:
    """dJ/dtheta at `tau` from the five sums (5,) over draws from p_tau; zeros for no draws."""
    n, h, loss, h_loss, h_h = sums.tolist()
    if not (n and loss):
        return Gradient()
    covariance = h_loss / n - h / n * (loss / n)
    variance = max(h_h / n - (h / n) ** 2, 0.0)
    return Gradient(covariance / (tau * (loss / n)), -beta * variance / tau**2)
