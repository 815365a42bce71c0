"""The masker that a configuration names."""

from __future__ import annotations

from mimcl.curriculum.masking.block import BlockMasker
from mimcl.curriculum.masking.grid import GridMasker
from mimcl.curriculum.masking.hard_patches import HardPatchesConfig, HardPatchesMasker
from mimcl.curriculum.masking.learned import LearnedMasker, LearnedMaskingConfig
from mimcl.curriculum.masking.masker import Autoencoder, Masker, MaskingConfig
from mimcl.curriculum.masking.random import RandomMasker
from mimcl.curriculum.masking.schedule import Clock

_WITHOUT_WEIGHTS = {"random": RandomMasker, "block": BlockMasker, "grid": GridMasker}


def make_masker(
    config: MaskingConfig,
    model: Autoencoder,
    clock: Clock,
    *,
    hard_patches: HardPatchesConfig,
    learned: LearnedMaskingConfig,
    seed: int,
) -> Masker:
    """The configured masker for `model`, on its device; its schedules follow `clock`, its weights from `seed`.

    ValueError when the ratio keeps or removes no patch, or a network does not fit the model.
    """
    if config.name == "hard-patches":
        return HardPatchesMasker(hard_patches, model, config.mask_ratio, clock, seed)
    if config.name == "learned":
        return LearnedMasker(learned, model, config.mask_ratio, clock, seed)
    return _WITHOUT_WEIGHTS[config.name](model.num_patches, config.mask_ratio).to(model.device)
