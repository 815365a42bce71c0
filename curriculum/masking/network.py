"""Transformer blocks as in the masked autoencoder, for maskers that learn, and their weights before training."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from timm.models.vision_transformer import Block
from torch import nn


def transformer(width: int, depth: int, heads: int) -> nn.ModuleList:
    """Pre-norm blocks with an MLP ratio of 4, over tokens (B, L, width)."""
    if width % heads:
        raise ValueError(f"a width of {width} cannot be divided among {heads} heads of attention")
    norm = partial(nn.LayerNorm, eps=1e-6)
    return nn.ModuleList(Block(width, heads, mlp_ratio=4, qkv_bias=True, norm_layer=norm) for _ in range(depth))


def drawn(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """What `build` makes, with Xavier-uniform matrices and zero biases that are a function of `seed` alone."""
    # Layers draw default weights from the global generator when they are made: its state is put back.
    with torch.random.fork_rng(devices=[]):
        network = build()
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight, generator=generator)
            nn.init.zeros_(module.bias)
    return network
