"""Training with labels, exactly resumable: batches in, optimizer steps out; and the accuracy of what comes of it.

It knows no augmentation and no network: an objective maps a micro-batch to the losses of its images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mimcl.model.distributed import Gradients, gather_rows
from mimcl.model.metrics import Outcome, OutcomeReader
from mimcl.model.optim import OptimConfig, learning_rate
from mimcl.model.trainer import TrainingError


class Batch(Protocol):
    """A micro-batch of the step that ends at draw `position`."""

    position: int


class Supervised:
    """Steps of `batch_size` draws, each in `micro_batches` pieces, until draw `draws`.

    `objective(batch)` gives the losses (n,) of a micro-batch, `rate(position)` the learning rate of the step that
    begins at that draw, to be multiplied by a parameter group's "lr_scale". Whatever floating-point buffers the module
    has, such as running statistics, are averaged over the ranks after each step.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        objective: Callable[[Any], Tensor],
        rate: Callable[[int], float],
        *,
        batch_size: int,
        micro_batches: int,
        draws: int,
        world_size: int = 1,
        max_nonfinite: int = 3,
    ) -> None:
        self.module, self.position = module, 0
        self._optimizer, self._objective, self._rate = optimizer, objective, rate
        self._batch_size, self._micro_batches, self._draws = batch_size, micro_batches, draws
        self._world_size, self._max_nonfinite, self._nonfinite = world_size, max_nonfinite, 0
        self._gradients = Gradients([p for p in module.parameters() if p.requires_grad])
        self._statistics = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
        self._device = next(module.parameters()).device
        self._outcomes = OutcomeReader(self._device)

    def run(
        self,
        stream: Iterable[Batch],
        after_step: Callable[[int, list[Outcome]], None],
        stop: Callable[[], bool] = lambda: False,
        due: Callable[[int], bool] = lambda step: False,
    ) -> bool:
        """Trains to the end of the stream, which starts at `position`, or until `stop()` is true on some rank.

        `after_step(step, outcomes)` follows each step, with every step's outcome once, one step late, or up to this
        step where something is `due(step)`. All ranks stop after the same step. Returns whether the end was reached.
        Raises TrainingError after `max_nonfinite` steps in a row without a finite gradient, which are skipped.
        """
        batches = iter(stream)
        while self.position < self._draws:
            self.module.train()
            lr = self._rate(self.position)
            figures = self._step(batches, lr, stop)
            step = self.position // self._batch_size
            outcomes = self._outcomes.push(step, lr, figures)
            if self.position >= self._draws or due(step) or any(outcome.stop for outcome in outcomes):
                outcomes += self._outcomes.flush()
            for outcome in outcomes:
                self._nonfinite = 0 if outcome.finite else self._nonfinite + 1
            after_step(step, outcomes)
            if self._nonfinite >= self._max_nonfinite:
                raise TrainingError(
                    f"no finite gradient in {self._nonfinite} steps in a row, up to step {outcomes[-1].step}; try a "
                    "lower base_lr"
                )
            if any(outcome.stop for outcome in outcomes):
                break
        return self.position >= self._draws

    def _step(self, batches: Iterator[Batch], lr: float, stop: Callable[[], bool]) -> Tensor:
        """One update; its loss, gradient norm, and whether to stop, over all ranks. Nothing here waits for a GPU."""
        before = [statistic.clone() for statistic in self._statistics]
        sums = torch.zeros(2, dtype=torch.float64, device=self._device)  # loss, asked to stop
        for remaining in reversed(range(self._micro_batches)):
            batch = next(batches)
            if not remaining:
                self._gradients.last_pass()
            losses = self._objective(batch)
            (losses.sum() / self._batch_size).backward()
            sums[0] += losses.detach().sum(dtype=torch.float64) / self._batch_size
        if stop():
            sums[1] += 1
        shares = [statistic.double().flatten() / self._world_size for statistic in self._statistics]
        sums = torch.cat([sums, *shares])
        self._gradients.finish(sums)
        norm = self._gradients.norm()
        finite = norm.isfinite()
        averages = sums[2:].split([statistic.numel() for statistic in self._statistics])
        for statistic, average, old in zip(self._statistics, averages, before, strict=True):
            statistic.copy_(torch.where(finite, average.view_as(statistic).to(statistic), old))
        self._update(lr, finite)
        self._gradients.zero()
        self.position = batch.position
        return torch.stack([sums[0], norm.double(), sums[1], torch.zeros_like(sums[0])])

    def _update(self, lr: float, finite: Tensor) -> None:
        """An optimizer's step, that leaves everything as it was where the gradient is not finite."""
        for group in self._optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        if self._optimizer.defaults.get("fused"):
            self._optimizer.grad_scale, self._optimizer.found_inf = None, (~finite).float()
            self._optimizer.step()
            return
        # Optimizers that are not fused know no found_inf; what they change here is small.
        before = {id(tensor): tensor.detach().clone() for tensor in self._changing()}
        self._optimizer.step()
        with torch.no_grad():
            for tensor in self._changing():
                tensor.copy_(torch.where(finite, tensor, before.get(id(tensor), 0.0)))

    def _changing(self) -> Iterator[Tensor]:
        for group in self._optimizer.param_groups:
            for parameter in group["params"]:
                yield parameter
                yield from (value for value in self._optimizer.state[parameter].values() if torch.is_tensor(value))

    def state_dict(self) -> dict[str, Any]:
        """What is needed besides the module's tensors in order to go on exactly."""
        return {
            "position": self.position,
            "optimizer": self._optimizer.state_dict(),
            "nonfinite": self._nonfinite,
        }

    def load(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Takes up where `tensors` and `state` were saved."""
        self.module.load_state_dict(tensors)
        self._optimizer.load_state_dict(state["optimizer"])
        self.position, self._nonfinite = state["position"], state["nonfinite"]


@torch.no_grad()
def accuracies(
    logits: Callable[[Any], Tensor],
    batches: Iterable[Any],
    targets: Callable[[Any], Tensor],
    device: torch.device,
) -> Iterator[tuple[str, float]]:
    """Yields ("top1", share), ("top5", share) of the images of all ranks together; a rank may have none.

    `logits(batch)` is (n, C), `targets(batch)` int64 (n,) on the device, -1 for a class that the logits do not have,
    which is never right. Of less than 5 classes top5 is of all.
    """
    counts = torch.zeros(3, dtype=torch.int64, device=device)
    for batch in batches:
        found, wanted = logits(batch), targets(batch)
        hits = found.topk(min(5, found.shape[1])).indices == wanted[:, None]
        counts += torch.stack([hits[:, 0].sum(), hits.any(dim=1).sum(), torch.full_like(counts[0], len(wanted))])
    right, among_five, images = gather_rows(counts.cpu()[None]).sum(dim=0).tolist()
    yield "top1", right / images
    yield "top5", among_five / images


def rate_at(
    position: int, samples: int, epochs: float, batch_size: int, optim: OptimConfig, min_lr: float = 0.0
) -> float:
    """The learning rate at a draw: as in pre-training, but the half cosine ends at `min_lr`; warm-up starts at 0."""
    epoch = position / samples
    lr = learning_rate(epoch, epochs, batch_size, optim)
    if epoch < optim.warmup_epochs:
        return lr
    peak = optim.base_lr * batch_size / 256
    return min_lr + (1 - min_lr / peak) * lr if peak else 0.0
