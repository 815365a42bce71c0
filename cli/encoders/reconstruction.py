"""What a checkpoint makes of crops: the masker's scores, what the model sees, and what it fills in."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mimcl.cli.encoders.restore import config_of, restore_masker, restore_model
from mimcl.curriculum.masking.mask import Mask
from mimcl.model.checkpoint import Checkpoint
from mimcl.model.mae import MaskedAutoencoderViT, Output, patchify, to_patches, unpatchify
from mimcl.pipeline.augment import STREAM_MASK, hash64

_GREY = 0.5  # of removed patches


class Reconstruction(NamedTuple):
    """Of n crops of side S with h x h patches."""

    scores: Tensor | None  # float32 (n, h, h): the higher, the rather removed; None from a masker without any
    seen: Tensor  # uint8 (n, 3, S, S): the crops without what the mask removes
    filled: Tensor  # uint8 (n, 3, S, S): the crops with the prediction where the mask removes
    stage: str  # the masker's first figure; empty without any


@torch.no_grad()
def reconstruct(saved: Checkpoint, crops: Tensor, seed: int, samples: int | None = None) -> Reconstruction:
    """Of uint8 crops (n, 3, S, S), in float32 on the CPU, with mask keys of the draws 0, 1, ... of `seed`.

    `samples`, how many images the run draws from, is needed for a checkpoint that was loaded without its state.
    """
    model = restore_model(config_of(saved), saved.tensors)
    masker, done = restore_masker(saved, model, samples)
    keys = torch.from_numpy(hash64(seed, np.arange(len(crops)), STREAM_MASK).view(np.int64))
    patches, progress = to_patches(crops, model.patch_size), torch.tensor(done, dtype=torch.float64)
    mask = masker.propose(patches, keys, model, progress)
    output = model(patches, mask)

    pixels, removed = patchify(crops.float(), model.patch_size), mask.mask[:, :, None] == 1
    seen = pixels.where(~removed, 255 * _GREY)
    filled = pixels.where(~removed, as_pixels(output.pred, crops, model))
    pictures = (unpatchify(p, model.patch_size).clamp(0, 255).to(torch.uint8) for p in (seen, filled))
    side = math.isqrt(model.num_patches)
    scores = None if mask.scores is None else mask.scores.float().unflatten(1, (side, side))
    whole = torch.arange(math.ceil(len(crops) / masker.group_size) * masker.group_size) % len(crops)  # whole groups
    figures = masker.figures(_rows(output, whole), _rows(mask, whole), progress)
    stage = next((f"{name} {figure.item():.3g}" for name, figure in figures.items()), "")
    return Reconstruction(scores, *pictures, stage)


def _rows(parts: Output | Mask, rows: Tensor) -> Output | Mask:
    return type(parts)(*(part if part is None else part[rows] for part in parts))


def as_pixels(pred: Tensor, crops: Tensor, model: MaskedAutoencoderViT) -> Tensor:
    """Predicted patches (n, L, P) in grey levels; normalised ones with the mean and deviation that the patch has."""
    if model.norm_pix_loss:
        variance, mean = torch.var_mean(to_patches(crops, model.patch_size), dim=-1, keepdim=True)
        pred = pred * (variance + 1e-6).sqrt() + mean
    # Back from the model's colours to grey levels: to_patches is a straight line in each channel.
    zero, one = (to_patches(torch.full_like(crops, value), model.patch_size) for value in (0, 1))
    return (pred - zero) / (one - zero)
