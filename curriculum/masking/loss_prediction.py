"""Which patches are hard to reconstruct: a decoder that predicts it, and what teaches it (HPM: Wang et al., 2023)."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mimcl.curriculum.masking.network import drawn, transformer

# Of the head's first weights: about as small as the published code's are after averaging, so that no patch seems harder
# than another before anything is learned.
_HEAD_SCALE = 0.02


class LossPredictor(nn.Module):
    """A second decoder on the reconstructing one's input, with one number for each patch: the higher, the harder.

    The published code averages as many outputs as a patch has values. A mean of linear outputs is a linear output with
    averaged weights: this has the latter.
    """

    def __init__(self, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.blocks = transformer(width, depth, heads)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, 1)

    def forward(self, decoder_input: Tensor) -> Tensor:
        """The decoder's input (B, 1 + L, width) to a prediction, float32 (B, L)."""
        x = decoder_input
        for block in self.blocks:
            x = block(x)
        # bfloat16 would make a few hundred values of them: patches would tie.
        with torch.autocast(x.device.type, enabled=False):
            return self.head(self.norm(x[:, 1:].float())).squeeze(-1)


def loss_predictor(width: int, depth: int, heads: int, seed: int) -> LossPredictor:
    """One with weights drawn from `seed`."""
    predictor = drawn(partial(LossPredictor, width, depth, heads), seed)
    with torch.no_grad():
        predictor.head.weight.mul_(_HEAD_SCALE)
    return predictor


def ranking_loss(predicted: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """-log sigmoid(predicted_i - predicted_j), mean over the pairs of removed patches with target_i > target_j: (B,).

    All are (B, L), mask 1 where removed; the target has no gradient. Pairs that tie are left out, and an image without
    other pairs has loss 0. The published code divides by the pairs of the whole batch: the same without ties.
    """
    harder = _harder(target, mask)
    margin = predicted[:, None, :] - predicted[:, :, None]
    losses = F.softplus(margin.masked_fill(~harder, -torch.inf))  # 0 where there is nothing to learn, its gradient too
    return losses.sum((1, 2)) / harder.sum((1, 2)).clamp(min=1)


def absolute_loss(predicted: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Squared error against the target, standardised over its image's removed patches, and their mean: (B,).

    All are (B, L), mask 1 where removed; the target has no gradient. The variance is the unbiased one, plus 1e-6.
    """
    removed = mask.sum(1, keepdim=True)
    offset = (target - (target * mask).sum(1, keepdim=True) / removed).detach() * mask
    variance = offset.square().sum(1, keepdim=True) / (removed - 1).clamp(min=1)
    error = predicted - offset / (variance + 1e-6).sqrt()
    return (error.square() * mask).sum(1) / removed.squeeze(1)


def ranking_accuracy(predicted: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Share of the pairs of removed patches that are predicted in the right order, 0-d; 0.5 is chance.

    All are (B, L), mask 1 where removed. Pairs whose targets tie are left out.
    """
    harder = _harder(target, mask)
    right = harder & (predicted[:, :, None] > predicted[:, None, :])
    return right.sum() / harder.sum().clamp(min=1)


def _harder(target: Tensor, mask: Tensor) -> Tensor:
    """Whether patch i is harder than patch j, both removed: bool (B, L, L)."""
    target = target.detach().masked_fill(mask == 0, torch.nan)  # with which every comparison is false
    return target[:, :, None] > target[:, None, :]
