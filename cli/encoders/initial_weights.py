"""Load the initial weights of a run from another run, a checkpoint or a file of third-party weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from mimcl.cli.encoders.encoder import Encoder
from mimcl.model.autoencoder import MaskedAutoencoder
from mimcl.model.checkpoint import CheckpointError
from mimcl.model.config import ModelConfig
from mimcl.model.digest import weights_digest
from mimcl.model.mae import encoder_weights
from mimcl.model.positions import fit_positions


@dataclass(frozen=True)
class InitResult:
    """Which weights a model was initialised with."""

    line: str  # for the user: what was loaded and what was drawn at random
    fingerprint: str  # of all weights of the model


@torch.no_grad()
def load_initial_weights(model: MaskedAutoencoder, config: ModelConfig, init: str) -> InitResult:
    """Load the weights at `init` into a newly built model of `config`; the decoder's too if its size matches.

    For another patch grid, fixed positions stay the model's own; learned ones are interpolated (bicubic, antialiased)
    and frozen. Raises CheckpointError if there are no weights or the encoder has another size.
    """
    source = Encoder.load(Path(init))
    theirs, ours = source.config.model, config
    if (theirs.name, theirs.patch_size) != (ours.name, ours.patch_size):
        raise CheckpointError(
            f"{init} is {theirs.name}/{theirs.patch_size}, but the run uses {ours.name}/{ours.patch_size}; give other "
            f"weights with --init, or --set model.name={theirs.name} --set model.patch_size={theirs.patch_size}"
        )
    loaded = encoder_weights(source.tensors)
    parts, notes = "encoder", []
    if not source.has_decoder:
        notes.append("decoder initialised at random: the file has none")
    elif theirs.decoder != ours.decoder:
        notes.append(
            f"decoder initialised at random: model.decoder is {theirs.decoder} in the file, {ours.decoder} in the run"
        )
    elif (theirs.decoder_width, theirs.decoder_depth) == (ours.decoder_width, ours.decoder_depth):
        parts = "encoder and decoder"
        loaded = {name: tensor for name, tensor in source.tensors.items() if not name.startswith("masker.")}
    else:
        notes.append(
            f"decoder initialised at random: width {theirs.decoder_width} and depth {theirs.decoder_depth} do not "
            f"match the run's {ours.decoder_width} and {ours.decoder_depth}"
        )
    for name in ("pos_embed", "decoder_pos_embed"):
        if name in loaded:
            loaded[name], note = fit_positions(loaded[name], model.image_size // model.patch_size)
            if note:
                notes.append(f"{name} {note}")
    model.load_state_dict(model.state_dict() | loaded)
    if source.note:
        notes.append(source.note)
    return InitResult(
        "; ".join([f"initial weights: {parts} from {source.path}", *notes]), weights_digest(model.state_dict())
    )
