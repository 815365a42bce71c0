"""The protocol that every masking follows, and what is configured for all of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from mimcl.curriculum.masking.mask import Mask

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


class Autoencoder(Protocol):
    """The parts of a masked autoencoder that maskers call: see `mimcl.model.mae`."""

    num_patches: int
    decoder_blocks: nn.ModuleList

    @property
    def device(self) -> torch.device: ...
    @property
    def cls_token(self) -> Tensor: ...
    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...
    def embed(self, patches: Tensor) -> Tensor: ...
    def encode(self, tokens: Tensor) -> Tensor: ...
    def to_decoder(self, latent: Tensor, ids_restore: Tensor | None) -> Tensor: ...
    def reconstruct(self, tokens: Tensor, ids_restore: Tensor | None, patches: Tensor) -> Output: ...


class Output(Protocol):
    """What the autoencoder computed."""

    @property
    def per_patch_loss(self) -> Tensor: ...
    @property
    def decoder_input(self) -> Tensor: ...


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
        """What one wants to see of a masker, by name, each of one element; asked for after logging steps.

        They are of the step's last micro-batch on this rank, with weights as the step leaves them. The first says how
        far its own curriculum is, whatever the images.
        """
        return {}

    def parameters_with_model(self) -> Iterable[tuple[str, nn.Parameter]]:
        """Named parameters trained by the model's optimizer."""
        return ()

    def own_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        """Named parameters trained by a second optimizer, which the trainer makes."""
        return ()
