"""The transformer block of a ViT, with fast attention, which can compute only the tokens that are needed.

Names and shapes of its parameters are those of timm. timm itself is not imported: that takes seconds.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

_MLP_RATIO = 4


class Block(nn.Module):
    """Attention and MLP, each after a LayerNorm and added to its input (Dosovitskiy et al. 2021, arXiv 2010.11929)."""

    def __init__(self, width: int, heads: int, eps: float = 1e-6) -> None:
        """`eps` is that of the norms."""
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps)
        self.mlp = Mlp(width)

    def forward(self, x: Tensor, ids: Tensor | None = None) -> Tensor:
        """Map tokens (B, L, width) to tokens, or only to those at `ids`, int64 (B, K): (B, K, width)."""
        attended = self.attn(self.norm1(x), ids)
        x = (x if ids is None else take(x, ids)) + attended
        return x + self.mlp(self.norm2(x))


class Attention(nn.Module):
    """Self-attention of `heads` heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"{heads} heads do not divide the width ({width})")
        self.num_heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor, ids: Tensor | None = None) -> Tensor:
        """Return what all tokens (B, L, width), or only those at `ids` (B, K), attend to: (B, L or K, width)."""
        if ids is None:
            query, key, value = split_heads(self.qkv(tokens), 3, self.num_heads)
        else:
            weights, biases = (part.tensor_split([tokens.shape[2]]) for part in (self.qkv.weight, self.qkv.bias))
            (query,) = split_heads(functional.linear(take(tokens, ids), weights[0], biases[0]), 1, self.num_heads)
            key, value = split_heads(functional.linear(tokens, weights[1], biases[1]), 2, self.num_heads)
        return self.proj(attend(query, key, value).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, _MLP_RATIO * width)
        self.fc2 = nn.Linear(_MLP_RATIO * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(tokens)))


class PatchEmbed(nn.Module):
    """Linear projection of RGB patches, whose weight has the shape of a convolution's."""

    def __init__(self, patch_size: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch_size, patch_size)

    def forward(self, patches: Tensor) -> Tensor:
        """Project patches (B, L, p * p * 3), values by row, column, channel, to tokens (B, L, width)."""
        return functional.linear(patches, self.proj.weight.permute(0, 2, 3, 1).flatten(1), self.proj.bias)


def split_heads(joined: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
    """Split (B, L, parts * width) into `parts` tensors (B, heads, L, width of a head)."""
    # timm permutes before it splits, so that the backward pass copies all gradients once more.
    return tuple(part.transpose(1, 2) for part in joined.unflatten(2, (parts, heads, -1)).unbind(2))


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return the attention of queries (B, H, K, D) to keys and values (B, H, L, D): (B, H, K, D).

    In bfloat16 on the CPU, torch's fused attention is 2 to 5 times slower with a backward pass, and faster without
    one. Its unfused attention looks for queries that attend to nothing, which takes as long as the softmax itself.
    """
    if query.requires_grad and query.dtype == torch.bfloat16 and query.device.type == "cpu":
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(2, 3)
        return scores.softmax(dim=3) @ value
    return functional.scaled_dot_product_attention(query, key, value)


def take(tokens: Tensor, ids: Tensor) -> Tensor:
    """Select tokens (B, L, D) at ids (B, K), in that order: (B, K, D)."""
    return tokens.gather(1, ids.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
