"""Restore the model and the masker from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from mimcl.cli.config import Config
from mimcl.cli.encoders.saved import config_of, samples_of
from mimcl.cli.run.resolve import draws_of
from mimcl.curriculum.masking.factory import make_masker
from mimcl.curriculum.masking.masker import Masker
from mimcl.curriculum.masking.schedule import MaskingSchedule
from mimcl.model.autoencoder import MaskedAutoencoder
from mimcl.model.checkpoint import Checkpoint
from mimcl.model.mae import build


def restore_model(config: Config, tensors: Mapping[str, Tensor] | None) -> MaskedAutoencoder:
    """Build the model of a run in evaluation mode, with saved weights or (None) the run's initial random weights.

    If the weights have no decoder, the decoder keeps its initial random weights.
    """
    complete = tensors is not None and "decoder_pred.weight" in tensors  # then no random weights are drawn
    model = build(config.model, config.data.image_size, None if complete else config.seed).eval()
    if tensors is not None:
        weights = {name: value for name, value in tensors.items() if not name.startswith("masker.")}
        model.load_state_dict(weights if complete else model.state_dict() | weights)
    return model


def restore_masker(saved: Checkpoint, model: MaskedAutoencoder, samples: int | None = None) -> tuple[Masker, float]:
    """Restore the masker that was saved with `model`; return it and the run's progress in [0, 1].

    `samples` is the number of images in the training data, by default as saved (see `samples_of`).
    """
    config = config_of(saved)
    samples = samples_of(saved) if samples is None else samples
    draws = draws_of(config, samples)
    masker = make_masker(
        config.masking,
        model,
        MaskingSchedule(config.masking.clock, config.trainer.epochs, draws / samples),
        hard_patches=config.hard_patches,
        learned=config.learned_masking,
        seed=config.seed,
    ).eval()
    weights = {name: value for name, value in saved.tensors.items() if name.startswith("masker.")}
    masker.load_state_dict({name.removeprefix("masker."): value for name, value in weights.items()})
    return masker, saved.meta["position"] / draws
