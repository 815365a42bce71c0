"""The weights that a run begins with, where they are not drawn: those of a run, a checkpoint or a file by anybody."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from mimcl.cli.config import Config
from mimcl.cli.encoders.encoder import Encoder
from mimcl.model.checkpoint import CheckpointError
from mimcl.model.digest import weights_digest
from mimcl.model.mae import MaskedAutoencoderViT, encoder_weights, sin_cos_positions

_ROUNDING = 0.01  # of positions stored in bfloat16, which lie between -1 and 1


@dataclass(frozen=True)
class Beginning:
    """What a model was given."""

    line: str  # for the user: what was taken, and what was drawn
    fingerprint: str  # of all weights that the model has now


@torch.no_grad()
def begin_with(model: MaskedAutoencoderViT, config: Config) -> Beginning:
    """Gives a freshly drawn model of `config` the weights at config.init; the decoder's too, if they are of its size.

    The fixed positions of another grid are not taken, since the model has those of its own; learned ones are
    interpolated (bicubic, antialiased), and stay fixed from then on. Raises CheckpointError when there are no weights,
    or the encoder is of another size.
    """
    source = Encoder.load(Path(config.init))
    theirs, ours = source.config.model, config.model
    if (theirs.name, theirs.patch_size) != (ours.name, ours.patch_size):
        raise CheckpointError(
            f"{config.init} is {theirs.name}/{theirs.patch_size}, the run {ours.name}/{ours.patch_size}; give other "
            f"weights with --init, or --set model.name={theirs.name} --set model.patch_size={theirs.patch_size}"
        )
    taken = encoder_weights(source.tensors)
    of_decoder = "the decoder is drawn: they have none"
    if source.has_decoder:
        sizes = [(model.decoder_width, model.decoder_depth) for model in (theirs, ours)]
        if sizes[0] == sizes[1]:
            taken = {name: tensor for name, tensor in source.tensors.items() if not name.startswith("masker.")}
            of_decoder = "and decoder"
        else:
            of_decoder = "the decoder is drawn: theirs is {} wide and {} deep, not {} and {}".format(
                *sizes[0], *sizes[1]
            )
    told = []
    for name in ("pos_embed", "decoder_pos_embed"):
        if name in taken:
            taken[name], how = _fitting(taken[name], getattr(model, name))
            if how:
                told.append(f"{name} {how}")
    model.load_state_dict(model.state_dict() | taken)
    separator = " " if of_decoder == "and decoder" else "; "
    line = "; ".join(
        [f"begins with {source.path}: the encoder{separator}{of_decoder}", *told, *filter(None, [source.note])]
    )
    return Beginning(line, weights_digest(model.state_dict()))


def _fitting(theirs: Tensor, ours: Tensor) -> tuple[Tensor, str]:
    """Positions (1, 1 + L, width) for the model's grid, and what was done to them where it has another."""
    if theirs.shape == ours.shape:
        return theirs, ""
    before, after = (math.isqrt(positions.shape[1] - 1) for positions in (theirs, ours))
    if (theirs - sin_cos_positions(theirs.shape[2], before)).abs().max() < _ROUNDING:
        return ours, f"fixed, of {after} x {after} patches instead of {before} x {before}"
    interpolated = resample_abs_pos_embed(theirs, [after, after])
    return interpolated, f"learned, interpolated from {before} x {before} to {after} x {after} patches"
