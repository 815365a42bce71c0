"""Prediction of the patches' reconstruction losses, and how it is trained (HPM: Wang et al., CVPR 2023)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mimcl.curriculum.masking.masker import Autoencoder
from mimcl.curriculum.masking.network import initialised, transformer

# Of the head's initial weights: about as small as in the published code after averaging, so that predictions are almost
# equal before anything is learned.
_HEAD_SCALE = 0.02


class PredictorInput(nn.Module):
    """The tokens of all patches, made from the latent as MAE's decoder does, where the autoencoder itself has none."""

    def __init__(self, latent_width: int, positions: Sequence[Tensor]) -> None:
        """`positions` are those of the decoder for each grid, (1, 1 + L, width), CLS token first."""
        super().__init__()
        width = positions[0].shape[-1]
        for of_grid in positions:
            self.register_buffer(f"positions_{of_grid.shape[1] - 1}", of_grid.detach().clone(), persistent=False)
        self.embed = nn.Linear(latent_width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))

    def forward(self, latent: Tensor, ids_restore: Tensor | None) -> Tensor:
        """Map the latent (B, 1 + K, latent_width) to tokens (B, 1 + L, width); `ids_restore` None: K = L, in order."""
        x = self.embed(latent)
        if ids_restore is None:
            return x + self._positions(x.shape[1] - 1)
        mask_tokens = self.mask_token.to(x.dtype).expand(len(x), ids_restore.shape[1] + 1 - x.shape[1], -1)
        order = ids_restore.unsqueeze(-1).expand(-1, -1, x.shape[-1])
        patches = torch.cat([x[:, 1:], mask_tokens], dim=1).gather(1, order)
        return torch.cat([x[:, :1], patches], dim=1) + self._positions(patches.shape[1])

    def _positions(self, patches: int) -> Tensor:
        return getattr(self, f"positions_{patches}")


class LossPredictor(nn.Module):
    """A second decoder on the input of the reconstructing one, with one output per patch; higher = harder.

    `input` makes that input where the reconstructing decoder has none with all patches.

    The published code averages as many outputs as a patch has values. A mean of linear outputs is a linear output with
    averaged weights, which is used here.
    """

    def __init__(
        self, block: type[nn.Module], width: int, depth: int, heads: int, own_input: PredictorInput | None = None
    ) -> None:
        super().__init__()
        self.input = own_input
        self.blocks = transformer(block, width, depth, heads)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, 1)

    def forward(self, decoder_input: Tensor, ids: Tensor | None = None) -> Tensor:
        """Map the decoder's input (B, 1 + L, width) to predicted losses, float32 (B, L), or only at `ids` (B, R)."""
        x, (*blocks, last) = decoder_input, self.blocks
        for block in blocks:
            x = block(x)
        x = last(x)[:, 1:] if ids is None else last(x, ids + 1)
        # bfloat16 has only a few hundred values in this range: patches would tie.
        with torch.autocast(x.device.type, enabled=False):
            return self.head(self.norm(x.float())).squeeze(-1)


def loss_predictor(model: Autoencoder, depth: int, seed: int) -> LossPredictor:
    """Build a LossPredictor as wide as the decoder of `model`, on its device, with weights drawn from `seed`."""
    latent_width, width = model.cls_token.shape[-1], model.decoder_pos_embed.shape[-1]

    def build() -> LossPredictor:
        positions = [model.positions("decoder_pos_embed", patches).cpu() for patches in model.grids]
        own_input = None if model.decodes_all_patches else PredictorInput(latent_width, positions)
        return LossPredictor(type(model.blocks[0]), width, depth, model.decoder_heads, own_input)

    predictor = initialised(build, seed).to(model.device)
    with torch.no_grad():
        predictor.head.weight.mul_(_HEAD_SCALE)
    return predictor


def ranking_loss(predicted: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of -log sigmoid(predicted_i - predicted_j) over removed patches with target_i > target_j: (B,).

    All arguments are (B, L), mask 1 where removed; the target gets no gradient. Ties are ignored; an image with nothing
    but ties has loss 0. The published code divides by the pairs of the whole batch, which is the same without ties.
    """
    harder = _harder(target, mask)
    margin = predicted[:, None, :] - predicted[:, :, None]
    losses = F.softplus(margin.masked_fill(~harder, -torch.inf))  # loss and gradient are 0 for other pairs
    return losses.sum((1, 2)) / harder.sum((1, 2)).clamp(min=1)


def absolute_loss(predicted: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Return the mean squared error over removed patches, against targets standardised over these: (B,).

    All arguments are (B, L), mask 1 where removed; the target gets no gradient. The variance is unbiased, plus 1e-6.
    """
    removed = mask.sum(1, keepdim=True)
    offset = (target - (target * mask).sum(1, keepdim=True) / removed).detach() * mask
    variance = offset.square().sum(1, keepdim=True) / (removed - 1).clamp(min=1)
    error = predicted - offset / (variance + 1e-6).sqrt()
    return (error.square() * mask).sum(1) / removed.squeeze(1)


def ranking_accuracy(predicted: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Return the share of pairs of removed patches that are predicted in the right order, 0-d; 0.5 is chance.

    All arguments are (B, L), mask 1 where removed. Pairs with equal targets are ignored.
    """
    harder = _harder(target, mask)
    right = harder & (predicted[:, :, None] > predicted[:, None, :])
    return right.sum() / harder.sum().clamp(min=1)


def _harder(target: Tensor, mask: Tensor) -> Tensor:
    """Return whether patch i is harder than patch j, both removed: bool (B, L, L)."""
    target = target.detach().masked_fill(mask == 0, torch.nan)  # comparisons with NaN are false
    return target[:, :, None] > target[:, None, :]
