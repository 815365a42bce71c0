"""What all masked autoencoders share: the encoder, a ViT that sees the kept patches only, and the reconstruction.

Masks come in as data: 0 = keep, 1 = remove. What predicts the removed patches is a subclass's decoder: see
`mimcl.model.mae` and `mimcl.model.cross_mae`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from mimcl.model.block import Block, PatchEmbed, take
from mimcl.model.positions import fit_positions, sin_cos_positions


class Mask(Protocol):
    """Which of L patches the encoder sees: ids_keep (B, K), ids_restore (B, L), mask (B, L) with 1 = removed."""

    @property
    def ids_keep(self) -> Tensor: ...
    @property
    def ids_restore(self) -> Tensor: ...
    @property
    def mask(self) -> Tensor: ...


class Prediction(NamedTuple):
    """What a decoder makes of B images, R patches of P values each."""

    pred: Tensor  # (B, R, P)
    latent: Tensor  # (B, 1 + K, width): CLS token first, then the kept patches
    decoder_input: Tensor | None  # (B, 1 + L, decoder_width): positions added; None if the decoder has no such tokens


class Output(NamedTuple):
    """The model's output for B images with L patches, of which R are predicted."""

    per_patch_loss: Tensor  # float32 (B, L): mean squared error of every predicted patch, 0 for others
    predicted: Tensor  # int64 (B, R): the predicted patches, in the order of pred
    pred: Tensor  # as in Prediction, and so are the following
    latent: Tensor
    decoder_input: Tensor | None


_POSITIONS: tuple[Literal["pos_embed", "decoder_pos_embed"], ...] = ("pos_embed", "decoder_pos_embed")


class MaskedAutoencoder(nn.Module):
    """An encoder, whose parameters are named as in timm's VisionTransformer, and a subclass's decoder.

    Images may be smaller than `image_size` if their grids were added, see `add_grids`.
    """

    decodes_all_patches: bool  # whether a decoder with a token per patch exists: `to_decoder`, `Output.decoder_input`
    decoder_blocks: nn.ModuleList
    decoder_heads: int

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        width: int,
        depth: int,
        heads: int,
        decoder_width: int,
        decoder_depth: int,
        decoder_heads: int,
        norm_pix_loss: bool,
        predict_share: float = 1.0,
    ) -> None:
        super().__init__()
        if image_size % patch_size:
            raise ValueError(f"data.image_size {image_size} is not a multiple of model.patch_size {patch_size}")
        self.image_size, self.patch_size, self.norm_pix_loss = image_size, patch_size, norm_pix_loss
        self.predict_share = predict_share  # of the removed patches, in training
        side = image_size // patch_size
        self.num_patches = side * side
        self.grids: tuple[int, ...] = (self.num_patches,)  # the numbers of patches that images may have

        self.patch_embed = PatchEmbed(patch_size, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(sin_cos_positions(width, side), requires_grad=False)
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width, eps=1e-6)

        self.decoder_heads = decoder_heads
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_width))
        self.decoder_pos_embed = nn.Parameter(sin_cos_positions(decoder_width, side), requires_grad=False)
        self.add_decoder_input(width, depth, decoder_width, decoder_depth)
        self.decoder_blocks = nn.ModuleList(
            [self.decoder_block(width, decoder_width, decoder_heads) for _ in range(decoder_depth)]
        )
        self.decoder_norm = nn.LayerNorm(decoder_width, eps=1e-6)
        self.decoder_pred = nn.Linear(decoder_width, patch_size * patch_size * 3)

    def add_decoder_input(self, width: int, depth: int, decoder_width: int, decoder_depth: int) -> None:
        """Add the modules between the encoder, of `width` and `depth`, and the decoder's blocks."""
        raise NotImplementedError

    def decoder_block(self, width: int, decoder_width: int, heads: int) -> nn.Module:
        """Return a new block of the decoder; `width` is the encoder's."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        return self.cls_token.device

    def initialise(self, generator: torch.Generator) -> None:
        """Initialise all weights: Xavier-uniform matrices (the patch projection as one matrix), tokens N(0, 0.02^2)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                nn.init.zeros_(module.bias)
        projection = self.patch_embed.proj
        assert projection.bias is not None
        nn.init.xavier_uniform_(projection.weight.view(projection.out_channels, -1), generator=generator)
        nn.init.zeros_(projection.bias)
        for token in (self.cls_token, self.mask_token):
            nn.init.normal_(token, std=0.02, generator=generator)

    def add_grids(self, sides: Iterable[int]) -> None:
        """Prepare for images of so many patches on a side as well; called before the model is copied or moved."""
        others = sorted({side for side in sides if side**2 != self.num_patches})
        for name in _POSITIONS:
            for side in others:
                # Not persistent: they follow from the weights.
                fitted, _ = fit_positions(getattr(self, name), side)
                self.register_buffer(f"{name}_{side**2}", fitted, persistent=False)
        self.grids = (*(side**2 for side in others), self.num_patches)
        self.register_load_state_dict_post_hook(_fit_grids)

    def positions(self, name: Literal["pos_embed", "decoder_pos_embed"], patches: int) -> Tensor:
        """Return the encoder's or the decoder's positions for one of the `grids`, (1, 1 + patches, width)."""
        return getattr(self, name if patches == self.num_patches else f"{name}_{patches}")

    def embed(self, patches: Tensor, ids: Tensor | None = None) -> Tensor:
        """Embed patches (B, L, P) as tokens with positions (B, L, width), or only the patches at `ids` (B, K)."""
        positions = self.positions("pos_embed", patches.shape[1])[:, 1:]
        if ids is not None:
            patches, positions = take(patches, ids), take(positions.expand(len(ids), -1, -1), ids)
        return self.patch_embed(patches) + positions

    def encode(self, tokens: Tensor) -> Tensor:
        """Encode tokens (B, K, width) to the latent (B, 1 + K, width), CLS token first."""
        x = self.with_cls_token(tokens)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def with_cls_token(self, tokens: Tensor) -> Tensor:
        """Put the CLS token before tokens (B, K, width): (B, 1 + K, width)."""
        cls_token = (self.cls_token + self.pos_embed[:, :1]).expand(len(tokens), -1, -1)
        return torch.cat([cls_token.to(tokens.dtype), tokens], dim=1)

    def predict(self, tokens: Tensor, ids_restore: Tensor | None, ids: Tensor | None) -> Prediction:
        """Predict the patches at `ids` (B, R), None for all L, from tokens (B, K, width) as in `reconstruct`."""
        raise NotImplementedError

    def to_decoder(self, latent: Tensor, ids_restore: Tensor | None) -> Tensor:
        """Convert the latent (B, 1 + K, width) to the decoder's input (B, 1 + L, decoder_width), if it has one."""
        raise NotImplementedError

    def target(self, patches: Tensor) -> Tensor:
        """Return the prediction target for patches (B, L, P); with norm_pix_loss each has mean 0 and variance 1."""
        if not self.norm_pix_loss:
            return patches
        # On the CPU torch.var is three times slower.
        centred = patches - patches.mean(dim=-1, keepdim=True)
        variance = centred.square().sum(dim=-1, keepdim=True) / (patches.shape[-1] - 1)
        return centred.div_((variance + 1e-6).sqrt())

    def forward(self, patches: Tensor, mask: Mask, ids: Tensor | None = None) -> Output:
        """Predict patches (B, L, P), all or only those at `ids` (B, R), from those that the mask keeps."""
        return self.reconstruct(self.embed(patches, mask.ids_keep), mask.ids_restore, patches, ids)

    def reconstruct(
        self, tokens: Tensor, ids_restore: Tensor | None, patches: Tensor, ids: Tensor | None = None
    ) -> Output:
        """Predict patches (B, L, P) from the tokens (B, K, width) of kept ones, ordered by ids_restore (B, L).

        `ids_restore` None: the tokens are those of all patches, in order. `ids` (B, R): only the patches there.
        """
        images, count = patches.shape[:2]
        prediction = self.predict(tokens, ids_restore, ids)
        target = self.target(patches if ids is None else take(patches, ids))
        losses = functional.mse_loss(prediction.pred.float(), target, reduction="none").mean(dim=-1)
        if ids is None:
            ids = torch.arange(count, device=losses.device).expand(images, count)
        else:
            losses = losses.new_zeros(images, count).scatter(1, ids, losses)
        return Output(losses, ids, *prediction)

    def features(self, patches: Tensor, pool: Literal["mean", "cls"] = "mean") -> Tensor:
        """Return features (B, width) of whole images, patches (B, L, P): mean of the patch tokens, or CLS token."""
        latent = self.encode(self.embed(patches))
        return latent[:, 0] if pool == "cls" else latent[:, 1:].mean(dim=1)


def removed_patches(mask: Mask) -> Tensor:
    """Return the removed patches (B, L - K), in their order in `ids_restore`."""
    places = torch.arange(mask.ids_restore.shape[1], device=mask.ids_restore.device).expand_as(mask.ids_restore)
    order = torch.empty_like(mask.ids_restore).scatter_(1, mask.ids_restore, places)
    return order[:, mask.ids_keep.shape[1] :]


@torch.no_grad()
def _fit_grids(model: nn.Module, _: object) -> None:
    """Fit the positions of all grids to weights that were loaded, in place: copies of the model may share them."""
    assert isinstance(model, MaskedAutoencoder)
    for patches in model.grids[:-1]:
        for name in _POSITIONS:
            model.positions(name, patches).copy_(fit_positions(getattr(model, name), math.isqrt(patches))[0])
