"""The one step loop: micro-batches in, optimizer steps out, for pre-training and for training with labels alike.

It accumulates gradients over micro-batches, sums them over the ranks, skips what is not finite, gives outcomes one step
late, and stops on all ranks after the same step. What a step trains is an `Objective`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import RLock
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from mimcl.model.distributed import Gradients
from mimcl.model.metrics import Outcome, OutcomeReader, Report
from mimcl.model.optim import update_where_finite
from mimcl.model.training_error import TrainingError


class StepBatch(Protocol):
    """A micro-batch of the step that ends at draw `position`, with the bad samples that were met on the way."""

    @property
    def position(self) -> int: ...
    @property
    def bad(self) -> Sequence[Any]: ...


B = TypeVar("B", bound=StepBatch)
B_in = TypeVar("B_in", bound=StepBatch, contravariant=True)


class Observer(Protocol[B_in]):
    """Sees every micro-batch with its losses (n,), on the device, after the backward pass.

    What it returns, float64 (k,), is summed over a step's micro-batches and over the ranks, and comes back as the
    `measured` of the step's outcome. At most one observer of a loop may return something.
    """

    def observe(self, batch: B_in, per_sample_loss: Tensor, /) -> Tensor | None: ...


class Objective(Protocol[B_in]):
    """What the steps of a loop train, and with what."""

    advice: str  # what to try when gradients are not finite

    def parameters(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Those that every backward pass reaches, and those that only some steps train."""

    def begin_step(self, position: int) -> None:
        """Prepare for the step that begins at draw `position`."""

    def backward(self, batch: B_in) -> Tensor:
        """Add a micro-batch's share to the gradients of the step; return its losses (n,), detached."""

    def buffers_to_average(self) -> Tensor | None:
        """This rank's shares, float64 (k,), of what is averaged over the ranks in a step: running statistics."""

    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """Those of this step: the second parameters are trained where there are two."""

    def learning_rate(self, position: int) -> float: ...

    def end_step(self, loss: Tensor, averages: Tensor, finite: Tensor) -> None:
        """Finish a step, after its update: mean loss over all ranks, averages (k,), and whether it was finite."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class Step:
    """A step that is done: its number, from 1, and the draw it ended at."""

    number: int
    position: int
    outcomes: list[Outcome]  # of earlier steps; of this one too where something is due
    report: Report | None = None

    @property
    def stopping(self) -> bool:
        """Whether all ranks stop after this step, because one of them was asked to."""
        return any(outcome.stop for outcome in self.outcomes)


class StepLoop(Generic[B]):
    """Runs steps of `batch_size` draws, each in `micro_batches` pieces, until draw `draws`."""

    def __init__(
        self,
        objective: Objective[B],
        device: torch.device,
        *,
        batch_size: int,
        micro_batches: int,
        draws: int,
        max_nonfinite: int = 3,
    ) -> None:
        """`max_nonfinite` steps in a row without a finite gradient raise TrainingError."""
        self.position = 0
        # Held while the state may change: during an update, and while the consumer has a step. Who acquires it in
        # another thread finds the state at `position`, even if the step under way never ends.
        self.changing = RLock()
        self._objective, self._device = objective, device
        self._batch_size, self._micro_batches, self._draws = batch_size, micro_batches, draws
        self._gradients = Gradients(*objective.parameters())
        self._outcomes = OutcomeReader(device)
        self._max_nonfinite, self._nonfinite = max_nonfinite, 0  # steps in a row, up to the last outcome

    def steps(
        self,
        batches: Iterable[B],
        observers: Sequence[Observer[B]] = (),
        stop: Callable[[], bool] = lambda: False,
        is_due: Callable[[int], bool] = lambda step: False,
    ) -> Iterator[Step]:
        """Train on `batches`, which start at `position`, to draw `draws`, or until `stop()` is true on some rank.

        Every step's outcome comes once, with the step after it, or at once where `is_due(step)`. Raises TrainingError.
        """
        with self.changing:
            yield from self._steps(iter(batches), observers, stop, is_due)

    def _steps(
        self,
        batches: Iterator[B],
        observers: Sequence[Observer[B]],
        stop: Callable[[], bool],
        is_due: Callable[[int], bool],
    ) -> Iterator[Step]:
        while self.position < self._draws:
            lr = self._objective.learning_rate(self.position)
            figures = self._step(batches, observers, stop, lr)
            number = self.position // self._batch_size
            outcomes = self._outcomes.push(number, lr, figures)
            if self.position >= self._draws or is_due(number) or any(outcome.stop for outcome in outcomes):
                outcomes += self._outcomes.flush()
            self._count(outcomes)
            step = Step(number, self.position, outcomes)
            yield step
            if self._nonfinite >= self._max_nonfinite:
                raise TrainingError(
                    f"no finite gradient in {self._nonfinite} steps in a row, up to step {outcomes[-1].step}; "
                    + self._objective.advice
                )
            if step.stopping:
                return

    def _step(
        self, batches: Iterator[B], observers: Sequence[Observer[B]], stop: Callable[[], bool], lr: float
    ) -> Tensor:
        """Make one update. Returns its loss, gradient norm, stop requests, bad samples and what was measured, float64
        and over all ranks; nothing here waits for a GPU.
        """
        self._objective.begin_step(self.position)
        with self.unchanged():
            sums = torch.zeros(3, dtype=torch.float64, device=self._device)  # loss, stop requests, bad samples
            measured: Tensor | None = None
            for remaining in reversed(range(self._micro_batches)):
                batch = next(batches)
                if not remaining:
                    self._gradients.last_pass()
                losses = self._objective.backward(batch)
                sums[0] += losses.sum(dtype=torch.float64) / self._batch_size
                for observer in observers:
                    found = observer.observe(batch, losses)
                    if found is not None:
                        measured = found if measured is None else found + measured
                if batch.bad:
                    sums[2] += len(batch.bad)
            if stop():
                sums[1] += 1
            parts = [part for part in (sums, measured, self._objective.buffers_to_average()) if part is not None]
            sizes = [3, 0 if measured is None else len(measured)]
            reduced = torch.cat(parts) if len(parts) > 1 else sums
            optimizers = self._objective.optimizers()
            self._gradients.finish(reduced, others=len(optimizers) > 1)
            sums, measured, averages = reduced.split([*sizes, len(reduced) - sum(sizes)])
        norm = self._gradients.norm()
        finite = norm.isfinite()
        for optimizer in optimizers:
            update_where_finite(optimizer, lr, finite)
        self._gradients.zero()
        self.position = batch.position
        self._objective.end_step(sums[0], averages, finite)
        return torch.cat([sums[:1], norm.double()[None], sums[1:], measured])

    def flush(self) -> list[Outcome]:
        """The outcome that is still to come when the loop was left by an exception, or in the middle of a step."""
        outcomes = self._outcomes.flush()
        self._count(outcomes)
        return outcomes

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """In the block, in the thread that trains, the state does not change; waits at its end for who reads it."""
        self.changing.release()
        try:
            yield
        finally:
            self.changing.acquire()

    def _count(self, outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            self._nonfinite = 0 if outcome.finite else self._nonfinite + 1

    def zero_gradients(self) -> None:
        self._gradients.zero()

    def state_dict(self) -> dict[str, Any]:
        """What is needed besides tensors in order to continue exactly."""
        return {"position": self.position, "nonfinite": self._nonfinite, **self._objective.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._objective.load_state_dict(state)
        self.position, self._nonfinite = state["position"], state["nonfinite"]
