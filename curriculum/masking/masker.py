"""Which patches a model does not see: the protocol that every masking follows. 0 = keep, 1 = remove."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class MaskingConfig:
    """`mask_ratio` is the share of patches removed from every image."""

    name: Literal["random", "block", "grid"] = "random"
    mask_ratio: float = 0.75

    def __post_init__(self) -> None:
        if not 0.0 < self.mask_ratio < 1.0:
            raise ValueError(f"masking.mask_ratio is {self.mask_ratio}; it must lie between 0 and 1, 0.75 in MAE")


class Mask(NamedTuple):
    """Of B images with L patches: K = int(L (1 - ratio)) are kept."""

    ids_keep: Tensor  # int64 (B, K): the kept patches, in the order the encoder sees them
    ids_restore: Tensor  # int64 (B, L): place of each patch in the order kept first, removed after
    mask: Tensor  # float32 (B, L): 1 where the patch is removed


def kept_patches(patches: int, mask_ratio: float) -> int:
    """How many of an image's patches are kept; ValueError when that is none or all of them."""
    kept = int(patches * (1 - mask_ratio))
    if not 0 < kept < patches:
        raise ValueError(
            f"masking.mask_ratio {mask_ratio} keeps {kept} of {patches} patches; "
            "at least one must be kept and one removed"
        )
    return kept


def keep_lowest(noise: Tensor, mask_ratio: float) -> Mask:
    """Keeps the int(L (1 - ratio)) patches with the lowest noise (B, L), in ascending order of noise (He et al.)."""
    images, patches = noise.shape
    kept = int(patches * (1 - mask_ratio))
    order = noise.argsort(dim=1)
    places = torch.arange(patches, device=noise.device).expand(images, patches)
    ids_restore = torch.empty_like(order).scatter_(1, order, places)
    return Mask(order[:, :kept], ids_restore, (ids_restore >= kept).float())


class Masker(nn.Module):
    """Owns whatever it learns. The trainer calls these in a fixed order and knows no masker by name."""

    def propose(self, images: Tensor, keys: Tensor, model: nn.Module, progress: float) -> Mask:
        """The mask of each image. `images` are normalised (B, 3, H, W), `keys` int64 (B,), progress in [0, 1]."""
        raise NotImplementedError

    def loss(self, output: Any, mask: Mask) -> Tensor | None:
        """Per draw (B,), added to the reconstruction loss of the same backward pass."""
        return None

    def second_loss(self, images: Tensor, keys: Tensor, model: nn.Module) -> Tensor | None:
        """Per draw (B,), an objective of its own, for `own_parameters` alone."""
        return None

    def after_step(self, model: nn.Module, progress: float, finite: Tensor) -> None:
        """Called after every optimizer step, for example to move a teacher.

        `finite` is a bool on the device: where it is false the step was skipped, and nothing may move.
        """

    def parameters_with_model(self) -> Iterable[tuple[str, nn.Parameter]]:
        """Named parameters trained by the model's optimizer."""
        return ()

    def own_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        """Named parameters trained by a second optimizer, which the trainer makes."""
        return ()
