"""timm's transformer block with faster attention, which can compute only the tokens that are needed."""

from __future__ import annotations

import torch
from timm.models import vision_transformer
from torch import Tensor
from torch.nn import functional


class Block(vision_transformer.Block):
    """timm's block, with its parameters and its results."""

    attn: vision_transformer.Attention

    def forward(self, x: Tensor, ids: Tensor | None = None) -> Tensor:  # type: ignore[override] # attention has no mask
        """Map tokens (B, L, width) to tokens, or only to those at `ids`, int64 (B, K): (B, K, width)."""
        tokens, layer = self.norm1(x), self.attn.qkv
        if ids is None:
            query, key, value = self._heads(layer(tokens), 3)
        else:
            weights, biases = (tensor.tensor_split([x.shape[2]]) for tensor in (layer.weight, layer.bias))
            (query,) = self._heads(functional.linear(take(tokens, ids), weights[0], biases[0]), 1)
            key, value = self._heads(functional.linear(tokens, weights[1], biases[1]), 2)
            x = take(x, ids)
        attended = attend(query, key, value).transpose(1, 2).flatten(2)
        x = x + self.drop_path1(self.ls1(self.attn.proj(attended)))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))

    def _heads(self, joined: Tensor, parts: int) -> tuple[Tensor, ...]:
        """Split (B, L, parts * width) into `parts` tensors (B, heads, L, width of a head)."""
        # timm permutes before it splits, so that the backward pass copies all gradients once more.
        split = joined.unflatten(2, (parts, self.attn.num_heads, -1)).unbind(2)
        return tuple(part.transpose(1, 2) for part in split)


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
