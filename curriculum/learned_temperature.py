"""A temperature learned from the losses: it rises as the loss of far images falls.

theta = log tau follows gradient descent on J = E_p[loss] / mean loss - beta H(p), with p = p_tau over h in [0, 1] and
the mean loss taken as constant. From dp_i/dtheta = p_i (h_i - E_p[h]) / tau and -log p_i = h_i / tau + log Z:

    dJ/dtheta = Cov_p(loss, h) / (tau * mean loss) - beta * Var_p(h) / tau^2

At the fixed point tau = beta * mean loss / (slope of loss on h). A window's draws come from its p, so its five sums
(n, h, loss, h * loss, h * h) estimate both terms. The theta of window w is that of window w-1 plus a step along the
gradient of window w-2, whose sums are complete on every rank well before window w is planned. Windows 0 and 1 have the
temperature of r0.

Waiting for sums never stalls a run: a step's sums are known after the next step, so those of window w-2 are known after
the first step of window w-1. Its other steps, 3 or more, are how far stream and decoder may run ahead of training.

By default theta never falls. So it is kept fixed while the learning rate warms up: before anything is learned no loss
depends on h, and the entropy alone would raise theta for good. For the same reason noise only ever raises it, more so
in short windows. The defaults of eta and beta were chosen on a simulated learner, tools/bench/learned_temperature.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from mimcl.curriculum.config import CurriculumConfig
from mimcl.curriculum.hardness import Hardness
from mimcl.curriculum.temperature import UNIFORM_WITHIN, EffectiveFraction
from mimcl.curriculum.window_gate import WindowGate

if TYPE_CHECKING:
    from torch import Tensor

_SUMS = 5
_KEPT_WINDOWS = 3  # the current window, the next, and the previous one, whose batches may still be in use


class Outcome(Protocol):
    """The result of a step over all ranks; `step` counts from 1."""

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


class _Theta(NamedTuple):
    """A window's log temperature, and the gradient that led to it."""

    theta: float
    gradient: Gradient


class LearnedTemperature:
    """The temperature of each window, from the losses of earlier windows; identical on all ranks.

    `update` must get the outcome of every step, once and in order; the state is a pure function of these calls.
    Windows that begin before draw `warm` leave theta unchanged. `curve` is the effective fraction of `distances` (N,).
    Raises ValueError for windows of fewer than 4 batches, and for an r0 below what any temperature reaches: then only
    samples of equal h are drawn and the gradient is always 0.
    """

    def __init__(
        self, config: CurriculumConfig, distances: NDArray[np.float32], *, batch_size: int, warm: int = 0
    ) -> None:
        self._config, self._batch_size, self._warm = config, batch_size, warm
        self._window_length = config.window_length(len(distances), batch_size)
        self.curve = EffectiveFraction(Hardness(config, np.asarray(distances, np.float32)))
        if config.r0 <= self.curve.lowest:
            raise ValueError(
                f"curriculum.r0 is {config.r0}; --temp-schedule learned needs more than {self.curve.lowest:.3f}, the "
                "fraction at temperature 0; choose a larger r0, or build fewer prototypes"
            )
        self._highest = math.log(self.curve.inverse(self.curve.uniform - UNIFORM_WITHIN))
        self._lowest = min(math.log(self.curve.inverse(config.r0)), self._highest)
        first = _Theta(self._lowest, Gradient())
        self._thetas = {0: first, 1: first}
        self._sums = np.zeros(_SUMS)  # of the current window: the last but one that has a temperature
        self._gate = WindowGate(1)

    def observe(self, batch: Any, per_sample_loss: Tensor) -> Tensor:
        """Return the five sums, float64 (5,), of a micro-batch with losses (n,), on their device and without syncing.

        Draws of the uniform phase are not from p_tau; their sums are 0.
        """
        import torch

        if batch.window.phase != "curriculum":
            return torch.zeros(_SUMS, dtype=torch.float64, device=per_sample_loss.device)
        h, loss = self._config.hardness(batch.distances).double(), per_sample_loss.double()
        return torch.stack([torch.ones_like(h), h, loss, h * loss, h * h]).sum(1)

    def update(self, outcomes: Iterable[Outcome]) -> None:
        """Add the sums measured by these steps; after the last step of window w, set the temperature of window w+2.

        Steps without a finite gradient are skipped.
        """
        for outcome in outcomes:
            if outcome.finite:
                self._sums += outcome.measured
            if outcome.step * self._batch_size % self._window_length == 0:
                self._take_step()

    def when_ready(self, window: int) -> Future[None] | None:
        """Return a future that is done once `window` has a temperature; None if it has one. Thread-safe."""
        return self._gate.when_open(window)

    def temperature(self, window: int) -> float:
        """Return tau of a recent window. Raises LookupError if it is not known yet, or no longer kept."""
        return math.exp(self._thetas[window].theta)

    def gradient(self, window: int) -> Gradient:
        """Return the gradient, before eta, that led to the theta of `window`; zeros for windows 0 and 1."""
        return self._thetas[window].gradient

    def state_dict(self) -> dict[str, Any]:
        """Return the state after the steps so far."""
        chosen = {window: (known.theta, *known.gradient) for window, known in self._thetas.items()}
        return {"window_length": self._window_length, "chosen": chosen, "sums": self._sums.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a saved state. Raises ValueError if its windows have another length."""
        if state["window_length"] != self._window_length:
            raise ValueError(
                f"the saved temperature was learned in windows of {state['window_length']} draws, not "
                f"{self._window_length}; keep curriculum.window as it was"
            )
        self._sums = np.array(state["sums"])
        self._thetas = {window: _Theta(theta, Gradient(*terms)) for window, (theta, *terms) in state["chosen"].items()}
        self._gate = WindowGate(max(self._thetas))

    def _take_step(self) -> None:
        newest = max(self._thetas)
        gradient = Gradient()
        if (newest - 1) * self._window_length >= self._warm:
            gradient = objective_gradient(self._sums, self.temperature(newest - 1), self._config.learned_beta)
        previous = self._thetas[newest].theta
        theta = previous - self._config.learned_eta * sum(gradient)
        if not self._config.learned_may_fall:
            theta = max(theta, previous)
        theta = min(max(theta, self._lowest), self._highest)
        kept = {window: self._thetas[window] for window in sorted(self._thetas)[1 - _KEPT_WINDOWS :]}
        self._sums = np.zeros(_SUMS)
        self._thetas = kept | {newest + 1: _Theta(theta, gradient)}
        self._gate.open(newest + 1)


def objective_gradient(sums: NDArray[np.float64], tau: float, beta: float) -> Gradient:
    """Return dJ/dtheta at `tau` from the five sums (5,) over draws from p_tau; zeros without draws."""
    n, h, loss, h_loss, h_h = sums.tolist()
    if not (n and loss):
        return Gradient()
    covariance = h_loss / n - h / n * (loss / n)
    variance = max(h_h / n - (h / n) ** 2, 0.0)
    return Gradient(covariance / (tau * (loss / n)), -beta * variance / tau**2)
