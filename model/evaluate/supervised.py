"""Training with labels: its objective for the step loop, its learning rate, and the accuracy of the result.

It knows no augmentation and no network: a function maps a micro-batch to the losses of its images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic

import torch
from torch import Tensor, nn

from mimcl.model.config import OptimConfig
from mimcl.model.distributed import gather_rows
from mimcl.model.optim import learning_rate
from mimcl.model.steps import B


class LabelledObjective(Generic[B]):
    """The `Objective` of the step loop that trains a module on labelled images.

    `losses(batch)` gives the losses (n,) of a micro-batch, `rate(position)` the learning rate of the step that begins
    at that draw, to be multiplied by a parameter group's "lr_scale". The module's floating-point buffers, such as
    running statistics, are averaged over the ranks after each step.
    """

    advice = "try a lower base_lr"

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        losses: Callable[[B], Tensor],
        rate: Callable[[int], float],
        *,
        batch_size: int,
        world_size: int = 1,
    ) -> None:
        self._module, self._optimizer, self._losses, self._rate = module, optimizer, losses, rate
        self._batch_size, self._world_size = batch_size, world_size
        self._statistics = {name: buffer for name, buffer in module.named_buffers() if buffer.is_floating_point()}
        self._before: dict[str, Tensor] = {}  # buffers before the step under way, whose passes change them

    def parameters(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        return [parameter for parameter in self._module.parameters() if parameter.requires_grad], []

    def begin_step(self, position: int) -> None:
        self._module.train()
        self._before = {name: buffer.clone() for name, buffer in self._module.named_buffers()}

    def backward(self, batch: B) -> Tensor:
        losses = self._losses(batch)
        (losses.sum() / self._batch_size).backward()
        return losses.detach()

    def buffers_to_average(self) -> Tensor | None:
        if not self._statistics:
            return None
        return torch.cat([statistic.double().flatten() / self._world_size for statistic in self._statistics.values()])

    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        return [self._optimizer]

    def learning_rate(self, position: int) -> float:
        return self._rate(position)

    def end_step(self, loss: Tensor, averages: Tensor, finite: Tensor) -> None:
        sizes = [statistic.numel() for statistic in self._statistics.values()]
        for (name, statistic), average in zip(self._statistics.items(), averages.split(sizes), strict=True):
            average = average.view_as(statistic).to(statistic)
            statistic.copy_(torch.where(finite, average, self._before[name]))
        self._before = {}

    def tensors(self) -> dict[str, Tensor]:
        """The module's state after the last complete step."""
        state = self._module.state_dict()
        return state | {name: buffer for name, buffer in self._before.items() if name in state}

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self._optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._optimizer.load_state_dict(state["optimizer"])


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
    return learning_rate(position / samples, epochs, batch_size, optim, batch_size / samples, min_lr)
