"""Reconstruct masked crops with a checkpoint: the masker's scores, the visible patches, the prediction."""

from __future__ import annotations

import math
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from mimcl.cli.encoders.restore import restore_masker, restore_model
from mimcl.cli.encoders.saved import config_of
from mimcl.curriculum.masking.mask import Mask
from mimcl.model.autoencoder import MaskedAutoencoder, Output
from mimcl.model.checkpoint import Checkpoint
from mimcl.model.mae import patchify, to_patches, unpatchify
from mimcl.pipeline.augment import STREAM_MASK, hash64

_GREY = 0.5  # of removed patches
_Rows = TypeVar("_Rows", Output, Mask)


class Reconstruction(NamedTuple):
    """The reconstruction of n crops of S x S pixels and h x h patches."""

    scores: Tensor | None  # float32 (n, h, h): higher = more likely masked; None if the masker has no scores
    seen: Tensor  # uint8 (n, 3, S, S): the crops, masked patches grey
    filled: Tensor  # uint8 (n, 3, S, S): the crops, masked patches predicted
    stage: str  # the masker's first figure, such as "done 0.5"; empty if it has none


@torch.no_grad()
def reconstruct(saved: Checkpoint, crops: Tensor, seed: int, samples: int | None = None) -> Reconstruction:
    """Reconstruct uint8 crops (n, 3, S, S) on the CPU in float32, masked with the keys of draws 0, 1, ... of `seed`.

    `samples` is the number of images in the training data, by default as saved (see `samples_of`).
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
    seen, filled = (unpatchify(p, model.patch_size).clamp(0, 255).to(torch.uint8) for p in (seen, filled))
    side = math.isqrt(model.num_patches)
    scores = None if mask.scores is None else mask.scores.float().unflatten(1, (side, side))
    rows = torch.arange(math.ceil(len(crops) / masker.group_size) * masker.group_size) % len(crops)  # whole groups
    figures = masker.figures(_rows(output, rows), _rows(mask, rows), progress)
    stage = next((f"{name} {figure.item():.3g}" for name, figure in figures.items()), "")
    return Reconstruction(scores, seen, filled, stage)


def _rows(fields: _Rows, rows: Tensor) -> _Rows:
    return type(fields)._make(field if field is None else field[rows] for field in fields)


def as_pixels(pred: Tensor, crops: Tensor, model: MaskedAutoencoder) -> Tensor:
    """Convert predicted patches (n, L, P) to pixel values; with norm_pix_loss by each patch's mean and deviation."""
    if model.norm_pix_loss:
        variance, mean = torch.var_mean(to_patches(crops, model.patch_size), dim=-1, keepdim=True)
        pred = pred * (variance + 1e-6).sqrt() + mean
    # Back from normalised to pixel values: to_patches is affine in each channel.
    zero, one = (to_patches(torch.full_like(crops, value), model.patch_size) for value in (0, 1))
    return (pred - zero) / (one - zero)
