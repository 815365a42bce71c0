"""The base class of all maskers, and their common configuration."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from mimcl.curriculum.masking.mask import Mask, random_share
from mimcl.curriculum.masking.uniforms import mix64, uniforms


class Autoencoder(Protocol):
    """The parts of a masked autoencoder that maskers call: see `mimcl.model.mae`."""

    num_patches: int
    grids: tuple[int, ...]  # the numbers of patches that images may have
    blocks: nn.ModuleList  # of one class, Block(width, heads, eps): see `mimcl.model.block`
    decoder_blocks: nn.ModuleList
    decoder_heads: int
    decodes_all_patches: bool  # whether there are `to_decoder` and `Output.decoder_input`

    @property
    def device(self) -> torch.device: ...
    @property
    def cls_token(self) -> Tensor: ...
    @property
    def decoder_pos_embed(self) -> Tensor: ...
    def positions(self, name: Literal["pos_embed", "decoder_pos_embed"], patches: int) -> Tensor: ...
    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...
    def embed(self, patches: Tensor) -> Tensor: ...
    def encode(self, tokens: Tensor) -> Tensor: ...
    def to_decoder(self, latent: Tensor, ids_restore: Tensor | None) -> Tensor: ...
    def reconstruct(self, tokens: Tensor, ids_restore: Tensor | None, patches: Tensor) -> Output: ...


class Output(Protocol):
    """The parts of the autoencoder's output that maskers use."""

    @property
    def per_patch_loss(self) -> Tensor: ...
    @property
    def predicted(self) -> Tensor: ...
    @property
    def latent(self) -> Tensor: ...
    @property
    def decoder_input(self) -> Tensor | None: ...


class Masker(nn.Module):
    """Proposes masks, and owns whatever it learns. The trainer calls the methods in a fixed order, for every masker.

    `progress`, float64 on the device, is the share of the run's draws that are done, in [0, 1]. The `model` passed to
    `propose` and `second_loss` is frozen: gradients only reach the masker's own parameters.
    """

    group_size = 1  # consecutive draws that `second_loss` combines; micro-batches are cut at its multiples
    second_every = 1  # `second_loss` is called every so many steps

    def propose(self, patches: Tensor, keys: Tensor, model: Autoencoder, progress: Tensor) -> Mask:
        """Return the mask of each image, given its normalised patches (B, L, P) and random `keys`, int64 (B,)."""
        raise NotImplementedError

    def predicted(self, mask: Mask, keys: Tensor, share: float) -> Tensor:
        """Return the patches to predict, int64 (B, R): a random share of an image's removed ones, chosen by its key."""
        return random_share(mask, uniforms(mix64(keys), mask.mask.shape[1]), share)

    def loss(self, output: Output, mask: Mask) -> Tensor | None:
        """Return a loss per draw (B,) to add to the reconstruction loss, or None."""
        return None

    def second_loss(self, patches: Tensor, mask: Mask, model: Autoencoder, progress: Tensor) -> Tensor | None:
        """Return an objective per draw (B,) for `own_parameters` alone, or None; `mask` is the proposed mask."""
        return None

    def after_step(self, model: nn.Module, progress: Tensor, finite: Tensor) -> None:
        """Update state after an optimizer step, for example a teacher; `progress` is that at the start of the step.

        `finite` is a bool on the device: if false, the step was skipped and no state may change.
        """

    def figures(self, output: Output, mask: Mask, progress: Tensor) -> dict[str, Tensor]:
        """Return metrics of one element each, by name; called after logging steps.

        They are computed on the step's last micro-batch on this rank, with the weights after the step. The first is the
        progress of the masker's own curriculum, independent of the images.
        """
        return {}

    def parameters_with_model(self) -> Iterable[tuple[str, nn.Parameter]]:
        """Return named parameters to train with the model's optimizer."""
        return ()

    def own_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        """Return named parameters to train with a second optimizer, which the trainer creates."""
        return ()
