"""The trainer: batches and masks in, optimizer steps out. It knows no curriculum, no masker by name, no file."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol

import torch
from torch import Tensor

from mimcl.model.distributed import Gradients
from mimcl.model.forward_backward import CompileUnit, M, Masker, Passed, Passes
from mimcl.model.mae import MaskedAutoencoderViT
from mimcl.model.metrics import Meter, Outcome, OutcomeReader, Report
from mimcl.model.optim import OptimConfig, adamw, learning_rate


@dataclass(frozen=True)
class TrainerConfig:
    """Length in epochs, arithmetic, and how often to log and save, in steps.

    `keep_every_steps` None becomes about a quarter of the run: a report shows what changed on the way.
    """

    epochs: float = 800.0
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    compile: bool = False
    deterministic: bool = False  # the same bits from the same steps on a GPU too, at some cost
    log_every_steps: int = 20
    checkpoint_every_steps: int = 1000
    keep_last: int = 3  # checkpoints
    keep_every_steps: int | None = None  # of each such stretch the first checkpoint is kept for good; 0: of none
    max_nonfinite: int = 3  # steps in a row without a finite gradient before the run stops
    online_knn_epochs: float = 0.0  # nearest neighbours are looked up every so many epochs, and at the end; 0: never

    def __post_init__(self) -> None:
        for name in ("log_every_steps", "checkpoint_every_steps", "keep_last", "max_nonfinite"):
            if getattr(self, name) < 1:
                raise ValueError(f"trainer.{name} is {getattr(self, name)}; it must be at least 1")
        if self.keep_every_steps is not None and self.keep_every_steps < 0:
            raise ValueError(f"trainer.keep_every_steps is {self.keep_every_steps}; it must not be negative")
        if self.online_knn_epochs < 0:
            raise ValueError(f"trainer.online_knn_epochs is {self.online_knn_epochs}; it must not be negative")
        if self.epochs <= 0:
            raise ValueError(f"trainer.epochs is {self.epochs}; it must be above 0")


class TrainingError(Exception):
    """Training cannot go on; one line that says why and what to try."""


class Batch(Protocol):
    """A micro-batch of n draws of the step that ends at draw `position`."""

    @property
    def images(self) -> Tensor: ...  # uint8 (n, 3, H, W), on the model's device
    @property
    def keys(self) -> Tensor: ...  # int64 (n,)
    @property
    def position(self) -> int: ...
    @property
    def bad(self) -> Sequence[Any]: ...  # the bad samples that were met


class Observer(Protocol):
    """Sees every micro-batch with its reconstruction losses (n,), on the device, after the backward pass."""

    def observe(self, batch: Batch, per_sample_loss: Tensor) -> None: ...


class Trainer(Generic[M]):
    """Runs steps of `batch_size` draws, each in `micro_batches` pieces, until draw `draws`; an epoch is `samples`."""

    def __init__(
        self,
        model: MaskedAutoencoderViT,
        masker: Masker[M],
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
        """`compile_unit` is what is compiled as one graph, where `config.compile` asks for it; see `Passes`."""
        self.model, self.masker, self.position = model, masker, 0
        self._config, self._optim_config = config, optim
        self._samples, self._draws = samples, draws
        self._batch_size, self._micro_batches = batch_size, micro_batches
        self._device = model.device
        own = [parameter for _, parameter in masker.own_parameters() if parameter.requires_grad]
        self._second_every = masker.second_every if own else 0
        self._passes = Passes(model, masker, own, batch_size, precision, compile_unit if config.compile else None)
        with_model = [*model.named_parameters(), *masker.parameters_with_model()]
        self._optimizers = [adamw(with_model, optim)]
        if own:
            self._optimizers.append(adamw(masker.own_parameters(), optim))
        self._gradients = Gradients([p for _, p in with_model if p.requires_grad], own)
        self._outcomes = OutcomeReader(self._device)
        # Since the report before: the sum of finite steps' losses and their number; and the number of all steps.
        self._finite_sums, self._steps_since = torch.zeros(2, dtype=torch.float64, device=self._device), 0
        self._meter = Meter()  # since the report before
        self._nonfinite = 0  # steps in a row, up to the last outcome

    def run(
        self,
        stream: Iterable[Batch],
        observers: Sequence[Observer],
        after_step: Callable[[int, Report | None, list[Outcome]], None],
        stop: Callable[[], bool] = lambda: False,
        measure: Callable[[Batch, Tensor], Tensor] | None = None,
    ) -> bool:
        """Trains to the end of the stream, which starts at `position`, or until `stop()` is true on some rank.

        `after_step(step, report, outcomes)` follows each step, with a report at logging steps, the first and the last,
        and with every step's outcome once, one step late; where a report or a checkpoint is due, up to this step.
        `measure(batch, losses)`, float64 (k,), is added up over a step's micro-batches and ranks and comes back with
        its outcome. All ranks stop after the same step. Returns whether the end was reached. Raises TrainingError
        after `max_nonfinite` steps in a row without a finite gradient.
        """
        batches = iter(stream)
        first, steps = self.position // self._batch_size + 1, self._draws // self._batch_size
        self._meter = Meter()
        for step in range(first, steps + 1):
            reporting = step in (1, steps) or step % self._config.log_every_steps == 0
            lr, figures, passed = self._step(self._meter.waiting(batches), observers, stop, measure)
            passed = passed if reporting else None  # it holds activations
            outcomes = self._outcomes.push(step, lr, figures)
            saving = step % self._config.checkpoint_every_steps == 0
            if reporting or saving or any(outcome.stop for outcome in outcomes):
                outcomes += self._outcomes.flush()
            for outcome in outcomes:
                self._nonfinite = 0 if outcome.finite else self._nonfinite + 1
            report = None
            if reporting:
                report, self._meter = self._report(step, lr, figures, passed), Meter()
            after_step(step, report, outcomes)
            if self._nonfinite >= self._config.max_nonfinite:
                raise TrainingError(
                    f"no finite gradient in {self._nonfinite} steps in a row, up to step {outcomes[-1].step}; usual "
                    "causes: optim.base_lr too high, optim.warmup_epochs too short, images without any contrast"
                )
            if any(outcome.stop for outcome in outcomes):
                return step == steps
        return True

    def _step(
        self,
        batches: Iterator[Batch],
        observers: Sequence[Observer],
        stop: Callable[[], bool],
        measure: Callable[[Batch, Tensor], Tensor] | None,
    ) -> tuple[float, Tensor, Passed[M]]:
        """One update from the next micro-batches: its learning rate, figures for all ranks together, the last passes.

        Nothing here waits for a GPU.
        """
        progress, number = self._progress(), self.position // self._batch_size
        second = self._second_every > 0 and number % self._second_every == 0
        sums = torch.zeros(3, dtype=torch.float64, device=self._device)  # loss, asked to stop, bad samples
        measured: Tensor | float = 0.0
        for remaining in reversed(range(self._micro_batches)):
            batch = next(batches)
            if not remaining:
                self._gradients.last_pass()
            passed = self._passes.backward(batch.images, batch.keys, progress, second)
            for observer in observers:
                observer.observe(batch, passed.losses)
            sums[0] += passed.losses.sum(dtype=torch.float64) / self._batch_size
            if measure:
                measured = measure(batch, passed.losses) + measured
            if batch.bad:
                sums[2] += len(batch.bad)
        if stop():
            sums[1] += 1
        if measure:
            sums = torch.cat([sums, measured])
        self._gradients.finish(sums, others=second)
        norm = self._gradients.norm()
        finite = norm.isfinite()
        epoch = self.position / self._samples
        lr = learning_rate(epoch, self._config.epochs, self._batch_size, self._optim_config)
        for optimizer in self._optimizers if second else self._optimizers[:1]:
            # The fused optimizer itself skips the update where found_inf is 1.
            optimizer.grad_scale, optimizer.found_inf = None, (~finite).float()
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
        self._gradients.zero()
        self.position = batch.position
        self.masker.after_step(self.model, progress, finite)
        self._finite_sums += torch.where(finite, torch.stack([sums[0], torch.ones_like(sums[0])]), 0.0)
        self._steps_since += 1
        return lr, torch.cat([sums[:1], norm.double()[None], sums[1:]]), passed

    def _progress(self) -> Tensor:
        """The share of the draws that are done, where the masker needs it; filled in without waiting for a GPU."""
        return torch.full((), self.position / self._draws, dtype=torch.float64, device=self._device)

    def flush(self) -> list[Outcome]:
        """The outcome that is still to come when `run` was left by an exception."""
        return self._outcomes.flush()

    def time_of_micro_batch(self, batch: Batch) -> float:
        """Seconds that the passes over `batch` take once warm, on average over steps; weights and position stay."""
        first_alone = self._seconds(batch, second=False)
        if not self._second_every:
            return first_alone
        return first_alone + (self._seconds(batch, second=True) - first_alone) / self._second_every

    def _seconds(self, batch: Batch, second: bool) -> float:
        for _ in range(2):
            started = time.perf_counter()
            passed = self._passes.backward(batch.images, batch.keys, self._progress(), second)
            passed.losses.sum().item()  # waited for on purpose
            elapsed = time.perf_counter() - started
        self._gradients.zero()
        return elapsed

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What is done in the block, between two steps, is no training: images a second do not count its time."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # the steps that are still queued are training
        with self._meter.paused():
            yield

    def _report(self, step: int, lr: float, figures: Tensor, passed: Passed[M]) -> Report:
        loss_sum, finite_steps = self._finite_sums.tolist()
        with torch.no_grad():
            of_masker = self.masker.figures(passed.output, passed.mask, passed.progress)
        report = Report(
            step=step,
            draw=self.position,
            loss=loss_sum / finite_steps if finite_steps else math.nan,
            lr=lr,
            grad_norm=figures[1].item(),
            images_per_second=self._meter.taken // self._micro_batches * self._batch_size / self._meter.elapsed(),
            data_wait=self._meter.share_waited(),
            nonfinite_steps=self._steps_since - round(finite_steps),
            masking={name: figure.item() for name, figure in of_masker.items()},
        )
        self._finite_sums.zero_()
        self._steps_since = 0
        return report

    def tensors(self) -> dict[str, Tensor]:
        """What a user of the trained model wants: its weights, and the masker's under "masker."."""
        masker = {f"masker.{name}": value for name, value in self.masker.state_dict().items()}
        return {**self.model.state_dict(), **masker}

    def state_dict(self) -> dict[str, Any]:
        """What is needed besides the tensors in order to go on, and to report, exactly."""
        return {
            "position": self.position,
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "finite_sums": self._finite_sums,
            "steps_since": self._steps_since,
            "nonfinite": self._nonfinite,
        }

    def load(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Takes up where `tensors` and `state` were saved. ValueError when they are of another model or masker."""
        _require_same_names(tensors, self.tensors())
        masker = {name.removeprefix("masker."): t for name, t in tensors.items() if name.startswith("masker.")}
        self.masker.load_state_dict(masker)
        self.model.load_state_dict({name: t for name, t in tensors.items() if not name.startswith("masker.")})
        for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self._finite_sums.copy_(state["finite_sums"])
        self._steps_since, self._nonfinite = state["steps_since"], state["nonfinite"]
        self.position = state["position"]


def _require_same_names(saved: Iterable[str], wanted: Iterable[str]) -> None:
    missing, foreign = {*wanted} - {*saved}, {*saved} - {*wanted}
    faults = [f"has no {_parts(missing)} ({len(missing)} tensors missing)"] if missing else []
    faults += [f"has {_parts(foreign)} ({len(foreign)} tensors), which this run has not"] if foreign else []
    if faults:
        raise ValueError(f"it {' and '.join(faults)}; go on with the model and masking that it was saved with")


def _parts(names: Iterable[str]) -> str:
    """What the tensors of these names belong to, for example "masker.teacher"."""
    parts = sorted({".".join(name.split(".")[:2]) for name in names})
    return ", ".join(parts[:3]) + (" ..." if len(parts) > 3 else "")
