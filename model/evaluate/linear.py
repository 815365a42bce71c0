"""The linear probe of MAE (He et al., CVPR 2022, and its code): a linear layer on a frozen encoder, trained by LARS."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm

from mimcl.model.autoencoder import MaskedAutoencoder
from mimcl.model.mae import to_patches

_EPS = 1e-6
_LARS_EPS = 1e-8


@dataclass(frozen=True)
class LinearConfig:
    """Everything that the probe depends on besides encoder and data; the defaults are MAE's."""

    epochs: float = 90.0
    batch_size: int = 16384
    base_lr: float = 0.1  # times batch_size / 256
    warmup_epochs: float = 10.0  # at most a fifth of the epochs
    momentum: float = 0.9
    trust: float = 0.001
    smallest_crop: float = 0.08  # share of the area
    judge_every_epochs: float = 10.0  # evaluate on the val images during training
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "base_lr"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")

    def travel(self, images: int) -> float:
        """The distance that LARS moves the weights over all steps, relative to their norm.

        A step moves them by trust * lr / (1 - momentum), with half the peak lr on average. The sum does not depend on
        the batch size, and grows with the number of images.
        """
        return self.epochs * images / 256 * self.base_lr / 2 * self.trust / (1 - self.momentum)


class Probe(nn.Module):
    """Batch normalisation without affine parameters, then a linear layer: features (B, width) to logits (B, C).

    Training uses the statistics of the micro-batch, as MAE uses those of a GPU's share. Evaluation uses averages over
    all training micro-batches, which a frozen encoder allows, instead of MAE's exponential moving averages.
    """

    mean: Tensor
    variance: Tensor
    seen: Tensor  # number of micro-batches

    def __init__(self, width: int, classes: int, generator: torch.Generator) -> None:
        super().__init__()
        for name, start in (("mean", torch.zeros(width)), ("variance", torch.ones(width)), ("seen", torch.zeros(()))):
            self.register_buffer(name, start)  # nn.BatchNorm1d's cumulative average waits for the device
        with torch.random.fork_rng(devices=[]):  # the layer draws default weights when it is created
            self.head = nn.Linear(width, classes)
        nn.init.trunc_normal_(self.head.weight, std=0.01, generator=generator)
        nn.init.zeros_(self.head.bias)

    def forward(self, features: Tensor) -> Tensor:
        if self.training:
            self.seen += 1
            self.mean.lerp_(features.mean(dim=0), 1 / self.seen)
            self.variance.lerp_(features.var(dim=0), 1 / self.seen)
            return self.head(batch_norm(features, None, None, training=True, eps=_EPS))
        return self.head(batch_norm(features, self.mean, self.variance, eps=_EPS))


class Lars(torch.optim.Optimizer):
    """LARS (You et al. 2017, arXiv 1708.03888) without weight decay: SGD with momentum of adapted gradients.

    In groups with "always_adapt" a gradient is multiplied by trust_coeff * |w| / |gradient|. States are those of timm.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], momentum: float, trust_coeff: float) -> None:
        defaults = {"lr": 0.0, "momentum": momentum, "trust_coeff": trust_coeff, "always_adapt": False}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override] # there is no closure here
        for group in self.param_groups:
            for weight in (weight for weight in group["params"] if weight.grad is not None):
                gradient, state = weight.grad, self.state[weight]
                if group["always_adapt"]:
                    norms = weight.norm(), gradient.norm()
                    ratio = group["trust_coeff"] * norms[0] / (norms[1] + _LARS_EPS)
                    gradient = gradient * torch.where((norms[0] > 0) & (norms[1] > 0), ratio, 1.0)
                if "momentum_buffer" in state:
                    state["momentum_buffer"].mul_(group["momentum"]).add_(gradient)
                else:
                    state["momentum_buffer"] = gradient.clone()
                weight.add_(state["momentum_buffer"], alpha=-group["lr"])


def lars(probe: nn.Module, config: LinearConfig) -> Lars:
    """Return the probe's optimizer, with a trust ratio for matrices alone."""
    groups: list[dict[str, Any]] = [
        {"params": [weight for weight in probe.parameters() if weight.ndim > 1], "always_adapt": True},
        {"params": [weight for weight in probe.parameters() if weight.ndim <= 1]},
    ]
    return Lars(groups, config.momentum, config.trust)


@torch.no_grad()
def cls_tokens(encoder: MaskedAutoencoder, images: Tensor) -> Tensor:
    """The normalised CLS tokens (B, width) of the last layer, for uint8 images (B, 3, S, S)."""
    return encoder.encode(encoder.embed(to_patches(images, encoder.patch_size)))[:, 0]
