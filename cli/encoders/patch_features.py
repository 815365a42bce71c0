"""Pictures of what an encoder makes of each patch: its features as colours, and the attention of the CLS token."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mimcl.model.attention_map import encode_with_attention
from mimcl.model.autoencoder import MaskedAutoencoder
from mimcl.model.mae import to_patches

_TAIL = 0.01  # of the patches at either end of a component, which get the colour of the end


class PatchFeatures(NamedTuple):
    """The patches of n crops, h x h each."""

    colours: Tensor  # float32 (n, h, h, 3), RGB in [0, 1]
    attention: Tensor  # float32 (n, h, h): mean over the heads; sums to 1 with what the CLS token pays to itself


@torch.no_grad()
def patch_features(model: MaskedAutoencoder, crops: Tensor) -> PatchFeatures:
    """Encode uint8 crops (n, 3, S, S), nothing masked, on the CPU in float32."""
    latent, attention = encode_with_attention(model, to_patches(crops, model.patch_size))
    side = math.isqrt(model.num_patches)
    colours = principal_colours(latent[:, 1:])
    return PatchFeatures(colours.unflatten(1, (side, side)), attention.mean(dim=1)[:, 1:].unflatten(1, (side, side)))


def principal_colours(features: Tensor) -> Tensor:
    """Map features (n, L, D) to RGB (n, L, 3) in [0, 1]: their first three principal components over all n L patches.

    As DINOv2 shows patches (Oquab et al., TMLR 2024, arXiv 2304.07193, figure 1), without its removal of the
    background. Each component is scaled from its 1 % to its 99 % quantile. Signs are arbitrary, so the largest loading
    is made positive. Components that explain nothing, as where features have fewer dimensions, are 0.5.
    """
    rows = features.flatten(0, 1).double()
    rows = rows - rows.mean(dim=0)
    _, deviations, directions = torch.linalg.svd(rows, full_matrices=False)
    directions = directions[:3]
    signs = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True)).sign()
    used = deviations[:3] > deviations[0] * max(rows.shape) * torch.finfo(torch.float32).eps
    components = rows @ (signs * directions).T * used
    low, high = components.quantile(torch.tensor([_TAIL, 1 - _TAIL], dtype=components.dtype), dim=0)
    colours = ((components - low) / (high - low)).nan_to_num(0.5).clamp(0, 1).float()
    return colours.unflatten(0, features.shape[:2])
