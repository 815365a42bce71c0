"""Efficient probing (Psomas et al., ICLR 2026, arXiv 2506.10178): attention over the patch tokens of a frozen encoder.

Each of M queries attends to the tokens as they are, without a projection of queries or keys; the values are one
projection of the tokens, of which a query pools its own M-th part. The parts together, as wide as a token, go to batch
normalisation and a linear layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mimcl.model.autoencoder import MaskedAutoencoder
from mimcl.model.evaluate.linear import LinearConfig, Probe
from mimcl.model.mae import to_patches


@dataclass(frozen=True)
class AttentiveConfig(LinearConfig):
    """The published recipe: that of MAE's linear probe in batches of 4,096."""

    batch_size: int = 4096
    queries: int = 32


@dataclass(frozen=True)
class AttentiveFastConfig:
    """AdamW for fewer epochs, which also suits small data sets, where LARS hardly moves."""

    epochs: float = 10.0
    batch_size: int = 256
    base_lr: float = 0.03  # times batch_size / 256
    weight_decay: float = 0.05  # of matrices
    warmup_epochs: float = 1.0  # at most a fifth of the epochs
    smallest_crop: float = 0.2  # share of the area
    judge_every_epochs: float = 10.0  # evaluate on the val images during training
    seed: int = 0
    queries: int = 32

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "base_lr"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")


class AttentiveProbe(nn.Module):
    """Classifies tokens (B, N, width): logits (B, C)."""

    def __init__(self, width: int, queries: int, classes: int, generator: torch.Generator) -> None:
        """Raises ValueError unless `width` is a multiple of `queries`."""
        super().__init__()
        if queries < 1 or width % queries:
            raise ValueError(f"queries is {queries}; it must divide the width of a token, {width}")
        self.queries = nn.Parameter(0.02 * torch.randn(queries, width, generator=generator))
        bound = width**-0.5
        self.values = nn.Parameter(torch.empty(queries, width // queries, width))
        nn.init.uniform_(self.values, -bound, bound, generator=generator)
        self.probe = Probe(width, classes, generator)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.probe(self.pool(tokens))

    def pool(self, tokens: Tensor) -> Tensor:
        """Pool tokens (B, N, width) to (B, width)."""
        scores = tokens @ self.queries.T * tokens.shape[-1] ** -0.5
        pooled = scores.softmax(dim=1).transpose(1, 2) @ tokens
        # The projection is linear, so it may follow the pooling, of N / M as many vectors.
        return torch.einsum("bmd,mkd->bmk", pooled, self.values).flatten(1)


def adamw(probe: nn.Module, config: AttentiveFastConfig) -> torch.optim.AdamW:
    """Return an optimizer with weight decay for matrices alone."""
    groups: list[dict[str, Any]] = [
        {"params": [weight for weight in probe.parameters() if weight.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [weight for weight in probe.parameters() if weight.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), fused=True)


@torch.no_grad()
def patch_tokens(encoder: MaskedAutoencoder, images: Tensor) -> Tensor:
    """The normalised patch tokens (B, N, width) of the last layer, for uint8 images (B, 3, S, S)."""
    return encoder.encode(encoder.embed(to_patches(images, encoder.patch_size)))[:, 1:]
