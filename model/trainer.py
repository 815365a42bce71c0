"""The trainer: batches and masks in, optimizer steps out. It knows no curriculum, no masker by name, no file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import Tensor

from mimcl.model.autoencoder import MaskedAutoencoder
from mimcl.model.config import OptimConfig, TrainerConfig
from mimcl.model.forward_backward import CompileUnit, Masker
from mimcl.model.masked_objective import Batch, MaskedObjective
from mimcl.model.metrics import Meter, Outcome, Report
from mimcl.model.steps import Observer, Step, StepLoop

B = TypeVar("B", bound=Batch)


class Trainer(Generic[B]):
    """Pre-trains in steps of `batch_size` draws, each in `micro_batches` pieces, until draw `draws`.

    An epoch is `samples` draws.
    """

    def __init__(
        self,
        model: MaskedAutoencoder,
        masker: Masker,
        config: TrainerConfig,
        optim: OptimConfig,
        *,
        samples: int,
        draws: int,
        batch_size: int,
        micro_batches: int,
        precision: Literal["bfloat16", "float32"],
        compile_unit: CompileUnit = "whole",
    ) -> None:
        """`compile_unit` is what is compiled as one graph if `config.compile` asks for it; see `ForwardBackward`."""
        self.model, self.masker = model, masker
        self._config, self.last_step = config, draws // batch_size
        self._batch_size, self.micro_batches, self._device = batch_size, micro_batches, model.device
        self._objective = MaskedObjective(
            model,
            masker,
            optim,
            epochs=config.epochs,
            samples=samples,
            draws=draws,
            batch_size=batch_size,
            precision=precision,
            compile_unit=compile_unit if config.compile else None,
        )
        self._loop: StepLoop[B] = StepLoop(
            self._objective,
            model.device,
            batch_size=batch_size,
            micro_batches=micro_batches,
            draws=draws,
            max_nonfinite=config.max_nonfinite,
        )
        self.changing = self._loop.changing  # held while the state may change; see `StepLoop`
        self._meter = Meter()  # since the report before

    @property
    def position(self) -> int:
        """The draw that the next step begins at."""
        return self._loop.position

    @position.setter
    def position(self, draw: int) -> None:
        self._loop.position = draw

    @property
    def finished(self) -> bool:
        """Whether the last step is done."""
        return self.position // self._batch_size >= self.last_step

    def steps(
        self,
        stream: Iterable[B],
        observers: Sequence[Observer[B]] = (),
        stop: Callable[[], bool] = lambda: False,
    ) -> Iterator[Step]:
        """Train to the end of the stream, which starts at `position`, or until `stop()` is true on some rank.

        A step has a report where one is due: at logging steps, the first and the last. Its outcomes come one step late;
        where a report or a checkpoint is due, up to this step. All ranks stop after the same step. Raises TrainingError
        after `max_nonfinite` steps in a row without a finite gradient.
        """
        self._meter = Meter()
        for step in self._loop.steps(self._metered(stream), observers, stop, self._is_due):
            if self._reports(step.number):
                yield replace(step, report=self._report(step))
            else:
                self._objective.release()
                yield step

    def _metered(self, stream: Iterable[B]) -> Iterator[B]:
        batches = iter(stream)
        while True:
            with self._meter.waiting():  # of now: a report begins a new one
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def _reports(self, step: int) -> bool:
        return step in (1, self.last_step) or step % self._config.log_every_steps == 0

    def _is_due(self, step: int) -> bool:
        return self._reports(step) or step % self._config.checkpoint_every_steps == 0

    def _report(self, step: Step) -> Report:
        latest, meter = step.outcomes[-1], self._meter
        loss, nonfinite = self._objective.mean_loss()
        report = Report(
            step=step.number,
            draw=step.position,
            loss=loss,
            lr=latest.lr,
            grad_norm=latest.grad_norm,
            images_per_second=meter.taken // self.micro_batches * self._batch_size / meter.elapsed(),
            data_wait=meter.share_waited(),
            nonfinite_steps=nonfinite,
            masking=self._objective.masker_figures(),
        )
        self._objective.release()
        self._meter = Meter()
        return report

    def flush(self) -> list[Outcome]:
        """The outcome that is still to come when `steps` was left by an exception."""
        return self._loop.flush()

    def time_of_micro_batch(self, batch: B) -> float:
        """Seconds that the passes over `batch` take, on average over steps; weights and position stay."""
        seconds = self._objective.time_of_passes(batch)
        self._loop.zero_gradients()
        return seconds

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What is done in the block, between two steps, is not training: images a second do not count its time."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # the steps that are still queued are training
        with self._meter.paused():
            yield

    def tensors(self) -> dict[str, Tensor]:
        """What a user of the trained model wants: its weights, and the masker's under "masker."."""
        masker = {f"masker.{name}": value for name, value in self.masker.state_dict().items()}
        return {**self.model.state_dict(), **masker}

    def state_dict(self) -> dict[str, Any]:
        """What is needed besides the tensors in order to go on, and to report, exactly."""
        return self._loop.state_dict()

    def load(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Takes up where `tensors` and `state` were saved. ValueError when they are of another model or masker."""
        _require_same_names(tensors, self.tensors())
        masker = {name.removeprefix("masker."): t for name, t in tensors.items() if name.startswith("masker.")}
        self.masker.load_state_dict(masker)
        self.model.load_state_dict({name: t for name, t in tensors.items() if not name.startswith("masker.")})
        self._loop.load_state_dict(state)


def _require_same_names(saved: Iterable[str], wanted: Iterable[str]) -> None:
    missing, foreign = {*wanted} - {*saved}, {*saved} - {*wanted}
    faults = [f"has no {_parts(missing)} ({len(missing)} tensors missing)"] if missing else []
    faults += [f"has {_parts(foreign)} ({len(foreign)} tensors), which this run does not have"] if foreign else []
    if faults:
        raise ValueError(f"it {' and '.join(faults)}; resume with the model and masking that it was saved with")


def _parts(names: Iterable[str]) -> str:
    """What the tensors of these names belong to, for example "masker.teacher"."""
    parts = sorted({".".join(name.split(".")[:2]) for name in names})
    return ", ".join(parts[:3]) + (" ..." if len(parts) > 3 else "")
