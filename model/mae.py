"""Masked autoencoder (He et al., CVPR 2022, arXiv 2111.06377)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor, nn

from mimcl.model.autoencoder import MaskedAutoencoder, Output, Prediction
from mimcl.model.block import Block, take
from mimcl.model.config import SIZES, ModelConfig
from mimcl.model.cross_mae import CrossMaskedAutoencoder

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, RGB in [0, 1]


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


def reconstruction_loss(output: Output, mask: Tensor) -> Tensor:
    """Return MAE's loss of each image (B,): the mean over the removed patches, mask (B, L), that were predicted."""
    return (output.per_patch_loss * mask).sum(dim=1) / mask.gather(1, output.predicted).sum(dim=1)


class MaskedAutoencoderViT(MaskedAutoencoder):
    """The autoencoder of He et al.: the decoder's tokens, visible and removed, all attend to one another."""

    decodes_all_patches = True

    def add_decoder_input(self, width: int, depth: int, decoder_width: int, decoder_depth: int) -> None:
        self.decoder_embed = nn.Linear(width, decoder_width)

    def decoder_block(self, width: int, decoder_width: int, heads: int) -> nn.Module:
        return Block(decoder_width, heads)

    def predict(self, tokens: Tensor, ids_restore: Tensor | None, ids: Tensor | None) -> Prediction:
        latent = self.encode(tokens)
        decoder_input = self.to_decoder(latent, ids_restore)
        return Prediction(self.decode(decoder_input, ids), latent, decoder_input)

    def to_decoder(self, latent: Tensor, ids_restore: Tensor | None) -> Tensor:
        """Convert the latent (B, 1 + K, width) to the decoder's input (B, 1 + L, decoder_width).

        Mask tokens are inserted and the order of the patches is restored. `ids_restore` None: no patch was removed.
        """
        x = self.decoder_embed(latent)
        if ids_restore is None:
            return x + self.positions("decoder_pos_embed", x.shape[1] - 1)
        removed = ids_restore.shape[1] + 1 - x.shape[1]
        mask_tokens = self.mask_token.to(x.dtype).expand(len(x), removed, -1)
        patches = take(torch.cat([x[:, 1:], mask_tokens], dim=1), ids_restore)
        return torch.cat([x[:, :1], patches], dim=1) + self.positions("decoder_pos_embed", patches.shape[1])

    def decode(self, decoder_input: Tensor, ids: Tensor | None = None) -> Tensor:
        """Decode the decoder's input (B, 1 + L, decoder_width) to predicted patches (B, L, P).

        With `ids` (B, R) only the patches there are predicted: (B, R, P).
        """
        x, (*blocks, last) = decoder_input, self.decoder_blocks
        for block in blocks:
            x = block(x)
        x = last(x)[:, 1:] if ids is None else last(x, ids + 1)
        return self.decoder_pred(self.decoder_norm(x))


def build(config: ModelConfig, image_size: int, seed: int | None) -> MaskedAutoencoder:
    """Build the configured model with random weights, a pure function of the seed.

    With `seed` None the weights are undefined, to be replaced by loaded ones.
    """
    width, depth, heads = SIZES[config.name]
    kind = {"self": MaskedAutoencoderViT, "cross": CrossMaskedAutoencoder}[config.decoder]
    # Layers initialise themselves from the global generator, whose state is restored.
    with torch.random.fork_rng(devices=[]):
        model = kind(
            image_size=image_size,
            patch_size=config.patch_size,
            width=width,
            depth=depth,
            heads=heads,
            decoder_width=config.decoder_width,
            decoder_depth=config.decoder_depth,
            decoder_heads=config.decoder_heads,
            norm_pix_loss=config.norm_pix_loss,
            predict_share=config.predict_share,
        )
    if seed is not None:
        model.initialise(torch.Generator().manual_seed(seed))
    return model


def encoder_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Select the part of a state dict that timm's VisionTransformer has too."""
    return {
        name: value for name, value in weights.items() if not name.startswith(("decoder_", "mask_token", "masker."))
    }


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
