"""What pre-training trains in a step: the reconstruction of removed patches, and the masker where it learns."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from mimcl.model.autoencoder import MaskedAutoencoder
from mimcl.model.config import OptimConfig
from mimcl.model.forward_backward import CompileUnit, ForwardBackward, Masker, PassResult
from mimcl.model.optim import adamw, learning_rate
from mimcl.model.steps import StepBatch


class Batch(StepBatch, Protocol):
    """A micro-batch of n draws."""

    @property
    def images(self) -> Tensor:
        """uint8 (n, 3, H, W), on the model's device."""

    @property
    def keys(self) -> Tensor:
        """int64 (n,), on the model's device."""


class MaskedObjective:
    """The `Objective` of the step loop that reconstructs what a masker removes, and trains a masker that learns."""

    advice = "usual causes: optim.base_lr too high, optim.warmup_epochs too short, images without any contrast"

    def __init__(
        self,
        model: MaskedAutoencoder,
        masker: Masker,
        optim: OptimConfig,
        *,
        epochs: float,
        samples: int,
        draws: int,
        batch_size: int,
        precision: Literal["bfloat16", "float32"],
        compile_unit: CompileUnit | None,
    ) -> None:
        """An epoch is `samples` draws; `compile_unit` None compiles nothing."""
        self._model, self._masker, self._epochs, self._optim_config = model, masker, epochs, optim
        self._samples, self._draws, self._batch_size = samples, draws, batch_size
        self._own = [parameter for _, parameter in masker.own_parameters() if parameter.requires_grad]
        self._with_model = [*model.named_parameters(), *masker.parameters_with_model()]
        self._second_every = masker.second_every if self._own else 0
        self._passes = ForwardBackward(model, masker, self._own, batch_size, precision, compile_unit)
        self._optimizers = [adamw(self._with_model, optim)]
        if self._own:
            self._optimizers.append(adamw(masker.own_parameters(), optim))
        # Since the report before: the sum of finite steps' losses and their number; and the number of all steps.
        self._finite_sums, self._steps_since = torch.zeros(2, dtype=torch.float64, device=model.device), 0
        self._passed: PassResult | None = None

    def parameters(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        return [parameter for _, parameter in self._with_model if parameter.requires_grad], self._own

    def begin_step(self, position: int) -> None:
        self._progress, self._passed = self._share(position), None
        self._second = self._second_every > 0 and position // self._batch_size % self._second_every == 0

    def backward(self, batch: Batch) -> Tensor:
        self._passed = None  # it holds activations
        self._passed = self._passes.backward(batch.images, batch.keys, self._progress, self._second)
        return self._passed.losses

    def buffers_to_average(self) -> None:
        return None

    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        return self._optimizers if self._second else self._optimizers[:1]

    def learning_rate(self, position: int) -> float:
        epoch, step = position / self._samples, self._batch_size / self._samples
        return learning_rate(epoch, self._epochs, self._batch_size, self._optim_config, step)

    def end_step(self, loss: Tensor, averages: Tensor, finite: Tensor) -> None:
        self._masker.after_step(self._model, self._progress, finite)
        self._finite_sums += torch.where(finite, torch.stack([loss, torch.ones_like(loss)]), 0.0)
        self._steps_since += 1

    def masker_figures(self) -> dict[str, float]:
        """The masker's own figures of the last micro-batch, on this rank."""
        assert self._passed is not None, "there was no step yet"
        with torch.no_grad():
            figures = self._masker.figures(self._passed.output, self._passed.mask, self._passed.progress)
        return {name: figure.item() for name, figure in figures.items()}

    def release(self) -> None:
        """Free what the last micro-batch left on the device."""
        self._passed = None

    def mean_loss(self) -> tuple[float, int]:
        """The mean loss of the finite steps since the last call, NaN for none, and the number of the others."""
        loss_sum, finite_steps = self._finite_sums.tolist()
        nonfinite = self._steps_since - round(finite_steps)
        self._finite_sums.zero_()
        self._steps_since = 0
        return (loss_sum / finite_steps if finite_steps else math.nan), nonfinite

    def time_of_passes(self, batch: Batch) -> float:
        """Seconds that the passes over `batch` take, on average over steps; gradients are left behind."""
        first_alone = self._seconds(batch, second=False)
        if not self._second_every:
            return first_alone
        return first_alone + (self._seconds(batch, second=True) - first_alone) / self._second_every

    def _seconds(self, batch: Batch, second: bool) -> float:
        progress = self._share(batch.position - self._batch_size)
        started = time.perf_counter()
        passed = self._passes.backward(batch.images, batch.keys, progress, second)
        passed.losses.sum().item()  # waited for on purpose
        return time.perf_counter() - started

    def _share(self, position: int) -> Tensor:
        """The share of the draws that are done, where the masker needs it; filled in without waiting for a GPU."""
        return torch.full((), position / self._draws, dtype=torch.float64, device=self._model.device)

    def state_dict(self) -> dict[str, Any]:
        return {
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "finite_sums": self._finite_sums,
            "steps_since": self._steps_since,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self._finite_sums.copy_(state["finite_sums"])
        self._steps_since = state["steps_since"]
