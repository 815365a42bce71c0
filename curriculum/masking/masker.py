"""Which patches a model does not see: the protocol that every masking follows. 0 = keep, 1 = remove."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

_OTHER_NAMES = {"hpm": "hard-patches", "cl-mae": "learned"}


@dataclass(frozen=True)
class MaskingConfig:
    """`mask_ratio` is the share of patches removed from every image.

    `clock`: schedules move at each epoch, as in the published codes, or at each step.
    """

    name: Literal["random", "block", "grid", "hard-patches", "learned", "hpm", "cl-mae"] = "random"
    mask_ratio: float = 0.75
    clock: Literal["epoch", "step"] = "epoch"

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", _OTHER_NAMES.get(self.name, self.name))
        if not 0.0 < self.mask_ratio < 1.0:
            raise ValueError(f"masking.mask_ratio is {self.mask_ratio}; it must lie between 0 and 1, 0.75 in MAE")


class Mask(NamedTuple):
    """Of B images with L patches: K = int(L (1 - ratio)) are kept."""

    ids_keep: Tensor  # int64 (B, K): the kept patches, in the order the encoder sees them
    ids_restore: Tensor  # int64 (B, L): place of each patch in the order kept first, removed after
    mask: Tensor  # float32 (B, L): 1 where the patch is removed
    scores: Tensor | None = None  # (B, L) of a masker that learns: the higher, the rather removed


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


def agreement(mask: Mask) -> Tensor:
    """How often two images agree whether a patch is removed, 0-d; 1 for equal masks, 0.625 for random ones at 0.75."""
    removed = mask.mask.mean(dim=0)  # share of the images, of each patch
    return (removed.square() + (1 - removed).square()).mean()


class Autoencoder(Protocol):
    """The parts of a masked autoencoder that maskers call: see `mimcl.model.mae`."""

    num_patches: int
    cls_token: Tensor
    decoder_blocks: nn.ModuleList

    def embed(self, patches: Tensor) -> Tensor: ...
    def encode(self, tokens: Tensor) -> Tensor: ...
    def to_decoder(self, latent: Tensor, ids_restore: Tensor | None) -> Tensor: ...
    def reconstruct(self, tokens: Tensor, ids_restore: Tensor | None, patches: Tensor) -> Output: ...


class Output(Protocol):
    """What the autoencoder computed."""

    per_patch_loss: Tensor
    decoder_input: Tensor


class Masker(nn.Module):
    """Owns whatever it learns. The trainer calls these in a fixed order and knows no masker by name.

    `progress`, float64 on the device, is the share of the run's draws that are done, in [0, 1]. `model` is frozen where
    it is given to `propose` and `second_loss`: gradients reach the masker's own parameters alone.
    """

    group_size = 1  # consecutive draws that `second_loss` takes together; micro-batches are cut at its multiples
    second_every = 1  # `second_loss` is asked for in one of so many steps

    def propose(self, patches: Tensor, keys: Tensor, model: Autoencoder, progress: Tensor) -> Mask:
        """The mask of each image. `patches` are the images', normalised (B, L, P); `keys` int64 (B,)."""
        raise NotImplementedError

    def loss(self, output: Output, mask: Mask) -> Tensor | None:
        """Per draw (B,), added to the reconstruction loss of the same backward pass."""
        return None

    def second_loss(self, patches: Tensor, mask: Mask, model: Autoencoder, progress: Tensor) -> Tensor | None:
        """Per draw (B,), an objective of its own for `own_parameters` alone; `mask` is what was proposed."""
        return None

    def after_step(self, model: nn.Module, progress: Tensor, finite: Tensor) -> None:
        """Called after every optimizer step, for example to move a teacher; `progress` is where the step began.

        `finite` is a bool on the device: where it is false the step was skipped, and nothing may move.
        """

    def figures(self, output: Output, mask: Mask, progress: Tensor) -> dict[str, Tensor]:
        """What one wants to see of a masker, by name, each of one element; asked for at logging steps.

        The first says how far its own curriculum is, whatever the images.
        """
        return {}

    def parameters_with_model(self) -> Iterable[tuple[str, nn.Parameter]]:
        """Named parameters trained by the model's optimizer."""
        return ()

    def own_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        """Named parameters trained by a second optimizer, which the trainer makes."""
        return ()
