"""AdamW as MAE uses it, and the learning rate as a pure function of the epoch."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from mimcl.model.config import OptimConfig

_ROUNDING = 1e-9  # of quotients of epochs


def learning_rate(
    epoch: float, epochs: float, batch_size: int, config: OptimConfig, step: float = 0.0, min_lr: float = 0.0
) -> float:
    """The rate at a fractional epoch in [0, epochs]; `step` is the length of a step in epochs.

    The half cosine ends at `min_lr`.
    """
    peak = config.base_lr * batch_size / 256
    warmup = config.warmup_epochs
    if warmup < step * (1 - _ROUNDING) or epochs < step * (1 + _ROUNDING):
        warmup = 0.0
    if epoch < warmup:
        return peak * epoch / warmup
    share = (epoch - warmup) / max(epochs - warmup, 1e-12)
    lr = peak * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
    return min_lr + (1 - min_lr / peak) * lr if peak else 0.0


class AdamW(torch.optim.AdamW):
    """torch's AdamW, without the decorators that import torch._dynamo, which takes over a second.

    They keep torch.compile out of the optimizer. Nothing here compiles it.
    """

    add_param_group = inspect.unwrap(torch.optim.AdamW.add_param_group)
    state_dict = inspect.unwrap(torch.optim.AdamW.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.AdamW.load_state_dict)
    zero_grad = inspect.unwrap(torch.optim.AdamW.zero_grad)
    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


def adamw(parameters: Iterable[tuple[str, nn.Parameter]], config: OptimConfig) -> AdamW:
    """Fused AdamW over the trainable named parameters; biases and norms (one-dimensional) do not decay."""
    trainable = [parameter for _, parameter in parameters if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=0.0, betas=config.betas, fused=True)


def update_where_finite(optimizer: torch.optim.Optimizer, lr: float, finite: Tensor) -> None:
    """Update at the rate `lr`, times a group's "lr_scale"; where `finite` (0-dim, bool) is false nothing changes.

    The host does not wait for the device to learn which.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
    if optimizer.defaults.get("fused"):
        # It skips the update itself where found_inf is 1.
        optimizer.grad_scale, optimizer.found_inf = None, (~finite).float()  # type: ignore[attr-defined] # torch's own
        optimizer.step()
        return
    # Other optimizers have no found_inf. They train few parameters here, so a copy costs little.
    before = {id(tensor): tensor.detach().clone() for tensor in _changed_by(optimizer)}
    optimizer.step()
    with torch.no_grad():
        for tensor in _changed_by(optimizer):
            tensor.copy_(torch.where(finite, tensor, before.get(id(tensor), 0.0)))


def _changed_by(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            yield parameter
            yield from (value for value in optimizer.state[parameter].values() if torch.is_tensor(value))
