"""Transformer blocks for maskers that learn, and the initialisation of their weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from timm.models.vision_transformer import Attention, Block
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def transformer(block: type[nn.Module], width: int, depth: int, heads: int, eps: float = 1e-6) -> nn.ModuleList:
    """Return blocks of the autoencoder's kind with an MLP ratio of 4, for tokens (B, L, width).

    `eps` is that of their norms. Called with `ids` (B, K) as well, a block computes only the tokens there.
    """
    norm: Any = partial(nn.LayerNorm, eps=eps)  # timm calls it, but declares a class
    return nn.ModuleList(block(width, heads, mlp_ratio=4, qkv_bias=True, norm_layer=norm) for _ in range(depth))


def attention_of(block: nn.Module) -> Attention:
    """Return the attention layer of a timm `Block`."""
    assert isinstance(block, Block)
    assert isinstance(block.attn, Attention)
    return block.attn


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
