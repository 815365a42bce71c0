"""Masked autoencoder (He et al., CVPR 2022, arXiv 2111.06377). Masks come in as data: 0 = keep, 1 = remove."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from mimcl.model.block import Block, PatchEmbed, take
from mimcl.model.config import SIZES, ModelConfig

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, RGB in [0, 1]


class Mask(Protocol):
    """Which of L patches the encoder sees: ids_keep (B, K), ids_restore (B, L), mask (B, L) with 1 = removed."""

    @property
    def ids_keep(self) -> Tensor: ...
    @property
    def ids_restore(self) -> Tensor: ...
    @property
    def mask(self) -> Tensor: ...


class Output(NamedTuple):
    """The model's output for B images with L patches of P values."""

    per_patch_loss: Tensor  # float32 (B, L): mean squared error of every predicted patch, 0 for others
    pred: Tensor  # (B, L, P), or (B, R, P) where only R patches are predicted
    latent: Tensor  # (B, 1 + K, width): CLS token first, then the kept patches
    decoder_input: Tensor  # (B, 1 + L, decoder_width): positions added


def to_patches(images: Tensor, patch_size: int) -> Tensor:
    """Convert uint8 images (B, 3, H, W) to float32 patches (B, L, P), normalised by ImageNet's mean and deviation.

    Model and maskers share the result: patchifying is expensive, and cheapest in uint8.
    """
    mean, std = _statistics(images.device, patch_size)
    return torch.sub(patchify(images, patch_size), mean).div_(std)


@cache
def _statistics(device: torch.device, patch_size: int) -> tuple[Tensor, Tensor]:
    """Return mean and deviation of a patch's values, 0 to 255; cached, because the copy waits for the device."""
    mean, std = (255 * torch.tensor(values).repeat(patch_size**2).to(device) for values in (MEAN, STD))
    return mean, std


def reconstruction_loss(per_patch_loss: Tensor, mask: Tensor) -> Tensor:
    """Return MAE's loss of each image (B,): the mean over its removed patches."""
    return (per_patch_loss * mask).sum(dim=1) / mask.sum(dim=1)


class MaskedAutoencoderViT(nn.Module):
    """Encoder and decoder; the encoder's parameters are named as in timm's VisionTransformer."""

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
    ) -> None:
        super().__init__()
        if image_size % patch_size:
            raise ValueError(f"data.image_size {image_size} is not a multiple of model.patch_size {patch_size}")
        self.image_size, self.patch_size, self.norm_pix_loss = image_size, patch_size, norm_pix_loss
        side = image_size // patch_size
        self.num_patches = side * side
        self.decoder_heads = decoder_heads

        self.patch_embed = PatchEmbed(patch_size, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(sin_cos_positions(width, side), requires_grad=False)
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width, eps=1e-6)

        self.decoder_embed = nn.Linear(width, decoder_width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_width))
        self.decoder_pos_embed = nn.Parameter(sin_cos_positions(decoder_width, side), requires_grad=False)
        self.decoder_blocks = nn.ModuleList([Block(decoder_width, decoder_heads) for _ in range(decoder_depth)])
        self.decoder_norm = nn.LayerNorm(decoder_width, eps=1e-6)
        self.decoder_pred = nn.Linear(decoder_width, patch_size * patch_size * 3)

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

    def embed(self, patches: Tensor, ids: Tensor | None = None) -> Tensor:
        """Embed patches (B, L, P) as tokens with positions (B, L, width), or only the patches at `ids` (B, K)."""
        positions = self.pos_embed[:, 1:]
        if ids is not None:
            patches, positions = take(patches, ids), take(positions.expand(len(ids), -1, -1), ids)
        return self.patch_embed(patches) + positions

    def encode(self, tokens: Tensor) -> Tensor:
        """Encode tokens (B, K, width) to the latent (B, 1 + K, width), CLS token first."""
        cls_token = (self.cls_token + self.pos_embed[:, :1]).expand(len(tokens), -1, -1)
        x = torch.cat([cls_token.to(tokens.dtype), tokens], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def to_decoder(self, latent: Tensor, ids_restore: Tensor | None) -> Tensor:
        """Convert the latent (B, 1 + K, width) to the decoder's input (B, 1 + L, decoder_width).

        Mask tokens are inserted and the order of the patches is restored. `ids_restore` None: no patch was removed.
        """
        x = self.decoder_embed(latent)
        if ids_restore is None:
            return x + self.decoder_pos_embed
        removed = ids_restore.shape[1] + 1 - x.shape[1]
        mask_tokens = self.mask_token.to(x.dtype).expand(len(x), removed, -1)
        patches = take(torch.cat([x[:, 1:], mask_tokens], dim=1), ids_restore)
        return torch.cat([x[:, :1], patches], dim=1) + self.decoder_pos_embed

    def decode(self, decoder_input: Tensor, ids: Tensor | None = None) -> Tensor:
        """Decode the decoder's input (B, 1 + L, decoder_width) to predicted patches (B, L, P).

        With `ids` (B, R) only the patches there are predicted: (B, R, P).
        """
        x, (*blocks, last) = decoder_input, self.decoder_blocks
        for block in blocks:
            x = block(x)
        x = last(x)[:, 1:] if ids is None else last(x, ids + 1)
        return self.decoder_pred(self.decoder_norm(x))

    def target(self, patches: Tensor) -> Tensor:
        """Return the prediction target for patches (B, L, P); with norm_pix_loss each has mean 0 and variance 1."""
        if not self.norm_pix_loss:
            return patches
        # On the CPU torch.var is three times slower.
        centred = patches - patches.mean(dim=-1, keepdim=True)
        variance = centred.square().sum(dim=-1, keepdim=True) / (patches.shape[-1] - 1)
        return centred.div_((variance + 1e-6).sqrt())

    def forward(self, patches: Tensor, mask: Mask, only_removed: bool = False) -> Output:
        """Reconstruct patches (B, L, P), all or only the removed ones, from those that the mask keeps."""
        removed = removed_patches(mask) if only_removed else None
        return self.reconstruct(self.embed(patches, mask.ids_keep), mask.ids_restore, patches, removed)

    def reconstruct(
        self, tokens: Tensor, ids_restore: Tensor | None, patches: Tensor, ids: Tensor | None = None
    ) -> Output:
        """Reconstruct patches (B, L, P) from the tokens (B, K, width) of kept ones, ordered by ids_restore (B, L).

        `ids_restore` None: the tokens are those of all patches, in order. `ids` (B, R): only the patches there.
        """
        latent = self.encode(tokens)
        decoder_input = self.to_decoder(latent, ids_restore)
        pred = self.decode(decoder_input, ids)
        target = self.target(patches if ids is None else take(patches, ids))
        losses = functional.mse_loss(pred.float(), target, reduction="none").mean(dim=-1)
        if ids is not None:
            losses = losses.new_zeros(patches.shape[:2]).scatter(1, ids, losses)
        return Output(losses, pred, latent, decoder_input)

    def features(self, patches: Tensor, pool: Literal["mean", "cls"] = "mean") -> Tensor:
        """Return features (B, width) of whole images, patches (B, L, P): mean of the patch tokens, or CLS token."""
        latent = self.encode(self.embed(patches))
        return latent[:, 0] if pool == "cls" else latent[:, 1:].mean(dim=1)


def build(config: ModelConfig, image_size: int, seed: int | None) -> MaskedAutoencoderViT:
    """Build the configured model with random weights, a pure function of the seed.

    With `seed` None the weights are undefined, to be replaced by loaded ones.
    """
    width, depth, heads = SIZES[config.name]
    # Layers initialise themselves from the global generator, whose state is restored.
    with torch.random.fork_rng(devices=[]):
        model = MaskedAutoencoderViT(
            image_size=image_size,
            patch_size=config.patch_size,
            width=width,
            depth=depth,
            heads=heads,
            decoder_width=config.decoder_width,
            decoder_depth=config.decoder_depth,
            decoder_heads=config.decoder_heads,
            norm_pix_loss=config.norm_pix_loss,
        )
    if seed is not None:
        model.initialise(torch.Generator().manual_seed(seed))
    return model


def encoder_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Select the part of a state dict that timm's VisionTransformer has too."""
    return {
        name: value for name, value in weights.items() if not name.startswith(("decoder_", "mask_token", "masker."))
    }


def removed_patches(mask: Mask) -> Tensor:
    """Return the removed patches (B, L - K), in their order in `ids_restore`."""
    places = torch.arange(mask.ids_restore.shape[1], device=mask.ids_restore.device).expand_as(mask.ids_restore)
    order = torch.empty_like(mask.ids_restore).scatter_(1, mask.ids_restore, places)
    return order[:, mask.ids_keep.shape[1] :]


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Convert (B, 3, H, W) to (B, L, p * p * 3): patches in row-major order, values by row, column, channel."""
    b, c, h, w = images.shape
    p = patch_size
    return images.reshape(b, c, h // p, p, w // p, p).permute(0, 2, 4, 3, 5, 1).reshape(b, -1, p * p * c)


def unpatchify(patches: Tensor, patch_size: int) -> Tensor:
    """Invert `patchify` for square images: (B, L, p * p * 3) to (B, 3, H, H)."""
    b, count, p = len(patches), patches.shape[1], patch_size
    side = math.isqrt(count)
    return patches.reshape(b, side, side, p, p, 3).permute(0, 5, 1, 3, 2, 4).reshape(b, 3, side * p, side * p)


def sin_cos_positions(width: int, side: int) -> Tensor:
    """Return fixed 2-D sine-cosine positions of a square grid, (1, 1 + side^2, width), zero for the CLS token.

    The first half of the width encodes the column, the second half the row, each as sines followed by cosines of
    position / 10000^(k / (width / 4)), k = 0 ... width / 4 - 1 (as in MAE).
    """
    if width % 4:
        raise ValueError(f"2-D sine-cosine positions need a width that is a multiple of 4 (got {width})")
    quarter = width // 4
    frequency = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    rows, columns = torch.meshgrid(*[torch.arange(side, dtype=torch.float64)] * 2, indexing="ij")
    angles = [axis.reshape(-1, 1) * frequency for axis in (columns, rows)]
    patches = torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], dim=1)
    return torch.cat([torch.zeros(1, width, dtype=torch.float64), patches])[None].float()
