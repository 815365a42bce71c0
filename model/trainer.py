"""The trainer: batches and masks in, optimizer steps out. It knows no curriculum, no masker by name, no file."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mimcl.model.mae import Mask, MaskedAutoencoderViT, Output, normalise, reconstruction_loss
from mimcl.model.metrics import FlagReader, Meter, Report
from mimcl.model.optim import OptimConfig, adamw, learning_rate


@dataclass(frozen=True)
class TrainerConfig:
    """Length in epochs, arithmetic, and how often to log and save, in steps."""

    epochs: float = 800.0
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    compile: bool = False
    log_every_steps: int = 20
    checkpoint_every_steps: int = 1000
    keep_last: int = 3  # checkpoints
    max_nonfinite: int = 3  # steps in a row without a finite gradient before the run stops

    def __post_init__(self) -> None:
        for name in ("log_every_steps", "checkpoint_every_steps", "keep_last", "max_nonfinite"):
            if getattr(self, name) < 1:
                raise ValueError(f"trainer.{name} is {getattr(self, name)}; it must be at least 1")
        if self.epochs <= 0:
            raise ValueError(f"trainer.epochs is {self.epochs}; it must be above 0")


class TrainingError(Exception):
    """Training cannot go on; one line that says why and what to try."""


class Batch(Protocol):
    """A micro-batch of n draws of the step that ends at draw `position`."""

    images: Tensor  # uint8 (n, 3, H, W), on the model's device
    keys: Tensor  # int64 (n,)
    position: int


class Masker(Protocol):
    """Proposes masks and may learn; see `mimcl.curriculum.masking.masker` for the contract."""

    def propose(self, images: Tensor, keys: Tensor, model: nn.Module, progress: float) -> Mask: ...
    def loss(self, output: Output, mask: Mask) -> Tensor | None: ...
    def second_loss(self, images: Tensor, keys: Tensor, model: nn.Module) -> Tensor | None: ...
    def after_step(self, model: nn.Module, progress: float) -> None: ...
    def parameters_with_model(self) -> Iterable[tuple[str, nn.Parameter]]: ...
    def own_parameters(self) -> Iterable[tuple[str, nn.Parameter]]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


class Observer(Protocol):
    """Sees every micro-batch with its reconstruction losses (n,), on the device, after the backward pass."""

    def observe(self, batch: Batch, per_sample_loss: Tensor) -> None: ...


class Trainer:
    """Runs steps of `batch_size` draws, each in `micro_batches` pieces, until draw `draws`; an epoch is `samples`."""

    def __init__(
        self,
        model: MaskedAutoencoderViT,
        masker: Masker,
        config: TrainerConfig,
        optim: OptimConfig,
        *,
        samples: int,
        draws: int,
        batch_size: int,
        micro_batches: int,
        precision: Literal["bfloat16", "float32"],
    ) -> None:
        self.model, self.masker, self.position = model, masker, 0
        self._config, self._optim_config = config, optim
        self._samples, self._draws = samples, draws
        self._batch_size, self._micro_batches = batch_size, micro_batches
        self._device = model.cls_token.device
        self._autocast = torch.autocast(self._device.type, torch.bfloat16, enabled=precision == "bfloat16")
        # Torch's fused attention on the CPU has a backward pass in bfloat16 that takes 8 times as long as in float32.
        slow = self._device.type == "cpu" and precision == "bfloat16"
        self._attention = partial(sdpa_kernel, SDPBackend.MATH) if slow else nullcontext
        self._forward = torch.compile(model) if config.compile else model
        self._own = [parameter for _, parameter in masker.own_parameters()]
        self._optimizers = [adamw([*model.named_parameters(), *masker.parameters_with_model()], optim)]
        if self._own:
            self._optimizers.append(adamw(masker.own_parameters(), optim))
        self._parameters = [p for o in self._optimizers for group in o.param_groups for p in group["params"]]
        self._flags = FlagReader(self._device)
        self._loss_sum = torch.zeros((), device=self._device)
        self._grad_norm = torch.zeros((), device=self._device)

    def run(
        self, stream: Iterable[Batch], observers: Sequence[Observer], after_step: Callable[[int, Report | None], None]
    ) -> None:
        """Trains to the end of the stream, which starts at `position`.

        `after_step(step, report)` follows each step, with a report at logging steps, the first and the last. Raises
        TrainingError after `max_nonfinite` steps in a row without a finite gradient.
        """
        batches = iter(stream)
        first, steps = self.position // self._batch_size + 1, self._draws // self._batch_size
        meter = Meter()
        for step in range(first, steps + 1):
            lr = self._step(meter.waiting(batches), observers)
            report = None
            # Also where a checkpoint is due, so that a resumed run reports over the same stretches.
            due = (self._config.log_every_steps, self._config.checkpoint_every_steps)
            if step in (1, steps) or any(step % every == 0 for every in due):
                report = self._report(step, lr, meter)
                meter = Meter()
            after_step(step, report)
            if self._flags.in_a_row >= self._config.max_nonfinite:
                raise TrainingError(
                    f"no finite gradient in {self._flags.in_a_row} steps in a row, about step {step}; usual causes: "
                    "optim.base_lr too high, optim.warmup_epochs too short, images without any contrast"
                )

    def _step(self, batches: Iterator[Batch], observers: Sequence[Observer]) -> float:
        """One update from the next micro-batches; returns its learning rate. Nothing here waits for the device."""
        progress = self.position / self._draws
        loss = torch.zeros((), device=self._device)
        for _ in range(self._micro_batches):
            batch = next(batches)
            per_sample_loss = self.backward(batch, progress)
            for observer in observers:
                observer.observe(batch, per_sample_loss)
            loss += per_sample_loss.sum() / self._batch_size
        norm = torch.nn.utils.get_total_norm([p.grad for p in self._parameters if p.grad is not None])
        nonfinite = (~norm.isfinite()).float()
        epoch = self.position / self._samples
        lr = learning_rate(epoch, self._config.epochs, self._batch_size, self._optim_config)
        for optimizer in self._optimizers:
            # The fused optimizer itself skips the update where found_inf is 1.
            optimizer.grad_scale, optimizer.found_inf = None, nonfinite
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
            optimizer.zero_grad()
        self.position = batch.position
        self.masker.after_step(self.model, self.position / self._draws)
        self._loss_sum += torch.where(nonfinite.bool(), 0.0, loss)
        self._grad_norm = norm
        self._flags.push(nonfinite)
        return lr

    def backward(self, batch: Batch, progress: float) -> Tensor:
        """Adds a micro-batch's share to the gradient of its step; returns its reconstruction losses (n,), detached."""
        with self._autocast, self._attention():
            images = normalise(batch.images)
            with torch.no_grad():
                mask = self.masker.propose(images, batch.keys, self.model, progress)
            output = self._forward(images, mask)
            per_sample_loss = reconstruction_loss(output.per_patch_loss, mask.mask)
            added = self.masker.loss(output, mask)
        objective = per_sample_loss if added is None else per_sample_loss + added
        (objective.sum() / self._batch_size).backward()
        with self._autocast, self._attention():
            second = self.masker.second_loss(images, batch.keys, self.model)
        if second is not None:
            torch.autograd.backward(second.sum() / self._batch_size, inputs=self._own)
        return per_sample_loss.detach()

    def time_of_micro_batch(self, batch: Batch) -> float:
        """Seconds that one forward and backward pass over `batch` takes once warm; weights and position stay."""
        for _ in range(2):
            started = time.perf_counter()
            self.backward(batch, 0.0).sum().item()  # the value is waited for on purpose
            elapsed = time.perf_counter() - started
        for optimizer in self._optimizers:
            optimizer.zero_grad()
        return elapsed

    def _report(self, step: int, lr: float, meter: Meter) -> Report:
        skipped = self._flags.settle()
        finite = meter.taken // self._micro_batches - skipped
        report = Report(
            step=step,
            draw=self.position,
            loss=self._loss_sum.item() / finite if finite else math.nan,
            lr=lr,
            grad_norm=self._grad_norm.item(),
            images_per_second=meter.taken // self._micro_batches * self._batch_size / meter.elapsed(),
            data_wait=meter.share_waited(),
            nonfinite_steps=skipped,
        )
        self._loss_sum.zero_()
        return report

    def tensors(self) -> dict[str, Tensor]:
        """What a user of the trained model wants: its weights, and the masker's under "masker."."""
        masker = {f"masker.{name}": value for name, value in self.masker.state_dict().items()}
        return {**self.model.state_dict(), **masker}

    def state_dict(self) -> dict[str, Any]:
        """What is needed besides the tensors in order to go on exactly."""
        return {"position": self.position, "optimizers": [optimizer.state_dict() for optimizer in self._optimizers]}

    def load(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Takes up where `tensors` and `state` were saved."""
        masker = {name.removeprefix("masker."): t for name, t in tensors.items() if name.startswith("masker.")}
        self.masker.load_state_dict(masker)
        self.model.load_state_dict({name: t for name, t in tensors.items() if not name.startswith("masker.")})
        for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.position = state["position"]
