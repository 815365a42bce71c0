"""Masks of patches: 0 = keep, 1 = remove."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Mask(NamedTuple):
    """Masks of B images with L patches, of which K = int(L (1 - ratio)) are kept."""

    ids_keep: Tensor  # int64 (B, K): the kept patches, in the order the encoder sees them
    ids_restore: Tensor  # int64 (B, L): position of each patch in the order kept, then removed
    mask: Tensor  # float32 (B, L): 1 where the patch is removed
    scores: Tensor | None = None  # (B, L) if the masker scores patches; higher = more likely masked


def kept_patches(patches: int, mask_ratio: float) -> int:
    """Return the number of patches kept in an image. Raises ValueError if that is none or all of them."""
    kept = _kept(patches, mask_ratio)
    if not 0 < kept < patches:
        raise ValueError(
            f"masking.mask_ratio is {mask_ratio}, which keeps {kept} of {patches} patches; choose a ratio that keeps "
            "and removes at least one"
        )
    return kept


def keep_lowest(noise: Tensor, mask_ratio: float) -> Mask:
    """Keep the int(L (1 - ratio)) patches with the lowest noise (B, L), in ascending order of noise (He et al.)."""
    images, patches = noise.shape
    kept = _kept(patches, mask_ratio)
    order = noise.argsort(dim=1)
    places = torch.arange(patches, device=noise.device).expand(images, patches)
    ids_restore = torch.empty_like(order).scatter_(1, order, places)
    return Mask(order[:, :kept], ids_restore, (ids_restore >= kept).float())


def random_share(mask: Mask, noise: Tensor, share: float) -> Tensor:
    """Return the removed patches with the lowest noise (B, L) in [0, 1): int64 (B, R), R = max(1, round(share L'))."""
    removed = mask.ids_restore.shape[1] - mask.ids_keep.shape[1]
    return (noise - mask.mask).argsort(dim=1)[:, : max(1, round(share * removed))]


def agreement(mask: Mask) -> Tensor:
    """Return how often two images agree whether a patch is removed, 0-d: 1 for equal masks, 0.625 if random at 0.75."""
    removed = mask.mask.mean(dim=0)  # share of the images in which each patch is removed
    return (removed.square() + (1 - removed).square()).mean()


def _kept(patches: int, mask_ratio: float) -> int:
    return int(patches * (1 - mask_ratio))
