"""What a checkpoint holds, as the model and the masker that were trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from mimcl.cli.config import Config, nested_keys, override
from mimcl.cli.run.folder import draws_of
from mimcl.curriculum.masking.factory import make_masker
from mimcl.curriculum.masking.masker import Masker
from mimcl.curriculum.masking.schedule import Clock
from mimcl.model import checkpoint
from mimcl.model.checkpoint import Checkpoint
from mimcl.model.mae import MaskedAutoencoderViT, build


def config_of(saved: Checkpoint) -> Config:
    """The configuration that a checkpoint was saved with."""
    return override(Config(), nested_keys(saved.meta["config"]))


def restore_model(config: Config, tensors: Mapping[str, Tensor] | None) -> MaskedAutoencoderViT:
    """The model of a run's configuration, for evaluation: with saved weights, or (None) with those that a run draws.

    Of weights without a decoder the decoder stays as it is drawn.
    """
    whole = tensors is not None and "decoder_pred.weight" in tensors  # nothing is drawn that is overwritten
    model = build(config.model, config.data.image_size, None if whole else config.seed).eval()
    if tensors is not None:
        of_model = {name: value for name, value in tensors.items() if not name.startswith("masker.")}
        model.load_state_dict(of_model if whole else model.state_dict() | of_model)
    return model


def restore_masker(saved: Checkpoint, model: MaskedAutoencoderViT, samples: int | None = None) -> tuple[Masker, float]:
    """The masker for `model`, restored from the same checkpoint, and the share of the run's draws done by then.

    `samples`, how many images the run draws from, is needed for an older checkpoint that was loaded without its state.
    """
    config = config_of(saved)
    samples = samples_of(saved) if samples is None else samples
    draws = draws_of(config, samples)
    masker = make_masker(
        config.masking,
        model,
        Clock(config.masking.clock, config.trainer.epochs, draws / samples),
        hard_patches=config.hard_patches,
        learned=config.learned_masking,
        seed=config.seed,
    ).eval()
    of_masker = {name: value for name, value in saved.tensors.items() if name.startswith("masker.")}
    masker.load_state_dict({name.removeprefix("masker."): value for name, value in of_masker.items()})
    return masker, saved.meta["position"] / draws


def load_weights(path: Path) -> Checkpoint:
    """A checkpoint without its state, except an older one, which only there tells how many images it draws from.

    Raises CheckpointError.
    """
    return checkpoint.load(path, with_state="samples" not in checkpoint.read_meta(path))


def samples_of(saved: Checkpoint) -> int:
    """How many images the run draws from."""
    return saved.meta["samples"] if "samples" in saved.meta else len(saved.state["draw_counts"])
