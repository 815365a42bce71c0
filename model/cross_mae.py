"""Masked autoencoder with a cross-attention decoder (CrossMAE: Fu et al., TMLR 2025, arXiv 2401.14391).

The decoder's tokens are queries for the patches to predict: mask token plus position. They attend to the encoder's
visible tokens and not to one another, so that any part of the removed patches can be predicted at its share of the
cost. Each block of the decoder attends to a learned mixture of its own of the encoder's layers.

Written from the paper's formulas. Its features f_l are the embedding and the output of each block, without the
encoder's last norm. The paper's prediction ratio is a share of all patches, `predict_share` one of the removed ones.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mimcl.model.autoencoder import MaskedAutoencoder, Prediction
from mimcl.model.block import Mlp, attend, split_heads, take


class CrossMaskedAutoencoder(MaskedAutoencoder):
    """The autoencoder of Fu et al."""

    decodes_all_patches = False

    def add_decoder_input(self, width: int, depth: int, decoder_width: int, decoder_depth: int) -> None:
        self.norm.requires_grad_(False)  # the decoder reads the layers before it: nothing would train it
        self.decoder_mixture = LayerMixture(1 + depth, decoder_depth, width)

    def decoder_block(self, width: int, decoder_width: int, heads: int) -> nn.Module:
        return CrossBlock(decoder_width, width, heads)

    def initialise(self, generator: torch.Generator) -> None:
        super().initialise(generator)
        self.decoder_mixture.initialise(generator)

    def predict(self, tokens: Tensor, ids_restore: Tensor | None, ids: Tensor | None) -> Prediction:
        layers = self.layers(tokens)
        count = (tokens if ids_restore is None else ids_restore).shape[1]
        x = self.queries(len(tokens), count, ids)
        for block, y in zip(self.decoder_blocks, self.decoder_mixture(layers), strict=True):
            x = block(x, y)
        return Prediction(self.decoder_pred(self.decoder_norm(x)), self.norm(layers[-1]), None)

    def layers(self, tokens: Tensor) -> list[Tensor]:
        """Return the embedding and every block's output, CLS token first, for tokens (B, K, width)."""
        layers = [self.with_cls_token(tokens)]
        for block in self.blocks:
            layers.append(block(layers[-1]))
        return layers

    def queries(self, images: int, count: int, ids: Tensor | None) -> Tensor:
        """Return the queries for all `count` patches, or those at `ids` (B, R): (B, R, decoder_width)."""
        positions = self.positions("decoder_pos_embed", count)[:, 1:].expand(images, count, -1)
        return self.mask_token + (positions if ids is None else take(positions, ids))


class LayerMixture(nn.Module):
    """y_j = norm_j(sum_l w_jl f_l): what block j of the decoder sees of the encoder's layers f_l."""

    def __init__(self, layers: int, mixtures: int, width: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(mixtures, layers))
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=1e-6) for _ in range(mixtures))

    def initialise(self, generator: torch.Generator) -> None:
        """Draw the weights from N(0, 1 / layers)."""
        nn.init.normal_(self.weights, std=self.weights.shape[1] ** -0.5, generator=generator)

    def forward(self, layers: list[Tensor]) -> list[Tensor]:
        """Mix layers, each (B, K, width), to as many tensors of that shape as there are mixtures."""
        mixed = self.weights @ torch.stack(layers).flatten(1)
        parts = mixed.unflatten(1, layers[0].shape).unbind()
        return [norm(part) for norm, part in zip(self.norms, parts, strict=True)]


class CrossBlock(nn.Module):
    """Cross-attention and MLP, each after a LayerNorm and added to its input."""

    def __init__(self, width: int, visible_width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = CrossAttention(width, visible_width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Map queries x (B, R, width), which attend to visible tokens y (B, K, visible_width), to (B, R, width)."""
        x = x + self.attn(self.norm1(x), y)
        return x + self.mlp(self.norm2(x))


class CrossAttention(nn.Module):
    """Attention of `heads` heads from queries to visible tokens, whose keys and values have the queries' width."""

    def __init__(self, width: int, visible_width: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(visible_width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return what queries x (B, R, width) attend to in y (B, K, visible_width): (B, R, width)."""
        (query,) = split_heads(self.q(x), 1, self.num_heads)
        key, value = split_heads(self.kv(y), 2, self.num_heads)
        return self.proj(attend(query, key, value).transpose(1, 2).flatten(2))
