"""Transformer blocks for maskers that learn, and the initialisation of their weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from timm.models.vision_transformer import Attention, Block
from torch import Tensor, nn
from torch.nn import functional as F

Network = TypeVar("Network", bound=nn.Module)


def transformer(width: int, depth: int, heads: int, eps: float = 1e-6) -> nn.ModuleList:
    """Return pre-norm blocks with an MLP ratio of 4, for tokens (B, L, width); `eps` is that of their norms."""
    norm: Any = partial(nn.LayerNorm, eps=eps)  # timm calls it, but declares a class
    return nn.ModuleList(Block(width, heads, mlp_ratio=4, qkv_bias=True, norm_layer=norm) for _ in range(depth))


def first_token(block: nn.Module, x: Tensor) -> Tensor:
    """Return the output of a timm `Block` for the first of the tokens (B, L, width) only: (B, width)."""
    assert isinstance(block, Block)
    attention, x_normed = attention_of(block), block.norm1(x)
    weight, bias = attention.qkv.weight, attention.qkv.bias
    query = F.linear(x_normed[:, :1], *(part[: x.shape[2]] for part in (weight, bias)))
    key, value = F.linear(x_normed, *(part[x.shape[2] :] for part in (weight, bias))).chunk(2, dim=2)
    heads = (part.unflatten(2, (attention.num_heads, -1)).transpose(1, 2) for part in (query, key, value))
    attended = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
    first = x[:, :1] + attention.proj(attended)
    return (first + block.mlp(block.norm2(first))).squeeze(1)


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
