"""What the CLS token of an encoder attends to, for pictures: the model's own path never computes attention weights."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mimcl.model.autoencoder import MaskedAutoencoder
from mimcl.model.block import Block, split_heads


class Attended(NamedTuple):
    """The encoding of B whole images of L patches."""

    latent: Tensor  # (B, 1 + L, width), CLS token first, as of `encode`
    attention: Tensor  # (B, heads, 1 + L): the last block's weights of the CLS token over all tokens, with sum 1


@torch.no_grad()
def encode_with_attention(model: MaskedAutoencoder, patches: Tensor) -> Attended:
    """Encode whole images, patches (B, L, P), keeping the attention of the CLS token in the last block."""
    x = model.with_cls_token(model.embed(patches))
    *blocks, last = model.blocks
    for block in blocks:
        x = block(x)
    assert isinstance(last, Block)
    tokens = last.norm1(x)
    query, key, _ = split_heads(last.attn.qkv(tokens), 3, last.attn.num_heads)
    scores = query[:, :, :1] * query.shape[-1] ** -0.5 @ key.transpose(2, 3)
    return Attended(model.norm(last(x)), scores.softmax(dim=-1)[:, :, 0])
