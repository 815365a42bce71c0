"""Transformer blocks as in the masked autoencoder, for maskers that learn, and their weights before training."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F


def transformer(width: int, depth: int, heads: int, eps: float = 1e-6) -> nn.ModuleList:
    """Pre-norm blocks with an MLP ratio of 4, over tokens (B, L, width); `eps` is their norms'."""
    norm = partial(nn.LayerNorm, eps=eps)
    return nn.ModuleList(Block(width, heads, mlp_ratio=4, qkv_bias=True, norm_layer=norm) for _ in range(depth))


def first_token(block: Block, x: Tensor) -> Tensor:
    """What `block` makes of the first of the tokens (B, L, width): (B, width). The others are only looked at."""
    attention, x_normed = block.attn, block.norm1(x)
    weight, bias = attention.qkv.weight, attention.qkv.bias
    query = F.linear(x_normed[:, :1], *(part[: x.shape[2]] for part in (weight, bias)))
    key, value = F.linear(x_normed, *(part[x.shape[2] :] for part in (weight, bias))).chunk(2, dim=2)
    heads = (part.unflatten(2, (attention.num_heads, -1)).transpose(1, 2) for part in (query, key, value))
    attended = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
    first = x[:, :1] + attention.proj(attended)
    return (first + block.mlp(block.norm2(first))).squeeze(1)


def drawn(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """What `build` makes, with Xavier-uniform matrices, zero biases and tokens N(0, 0.02^2), a function of `seed`."""
    # Layers draw default weights from the global generator when they are made: its state is put back.
    with torch.random.fork_rng(devices=[]):
        network = build()
    generator = torch.Generator().manual_seed(seed)
    # From `seed` itself the model's weights are drawn: these would be the same numbers.
    generator.manual_seed(torch.randint(2**62, (), generator=generator).item())
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight, generator=generator)
            nn.init.zeros_(module.bias)
    for name, parameter in network.named_parameters():
        if name.endswith("_token"):
            nn.init.normal_(parameter, std=0.02, generator=generator)
    return network
