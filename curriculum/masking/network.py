"""Transformer blocks for maskers that learn, and the initialisation of their weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def transformer(block: type[nn.Module], width: int, depth: int, heads: int, eps: float = 1e-6) -> nn.ModuleList:
    """Return blocks of the autoencoder's kind, for tokens (B, L, width); `eps` is that of their norms.

    Called with `ids` (B, K) as well, a block computes only the tokens there.
    """
    return nn.ModuleList(block(width, heads, eps) for _ in range(depth))


def initialised(build: Callable[[], Network], seed: int) -> Network:
    """Build a network with Xavier-uniform matrices, zero biases and tokens N(0, 0.02^2), all drawn from `seed`."""
    # Layers draw default weights from the global generator when they are created: its state is restored.
    with torch.random.fork_rng(devices=[]):
        network = build()
    generator = torch.Generator().manual_seed(seed)
    # The model's weights are drawn from `seed` itself: these must not be the same numbers.
    generator.manual_seed(int(torch.randint(2**62, (), generator=generator)))
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight, generator=generator)
            nn.init.zeros_(module.bias)
    for name, parameter in network.named_parameters():
        if name.endswith("_token"):
            nn.init.normal_(parameter, std=0.02, generator=generator)
    return network
