"""Make the masker that a configuration names."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import get_args

from mimcl.curriculum.masking.block import BlockMasker
from mimcl.curriculum.masking.by_grid import ByGrid
from mimcl.curriculum.masking.colour import Colour, ColourMasker
from mimcl.curriculum.masking.grid import GridMasker
from mimcl.curriculum.masking.hard_patches import HardPatchesMasker
from mimcl.curriculum.masking.learned import LearnedMasker
from mimcl.curriculum.masking.mask import kept_patches
from mimcl.curriculum.masking.masker import Autoencoder, Masker
from mimcl.curriculum.masking.masking_config import HardPatchesConfig, LearnedMaskingConfig, MaskingConfig
from mimcl.curriculum.masking.random import RandomMasker
from mimcl.curriculum.masking.schedule import MaskingSchedule

_COLOURS: tuple[Colour, ...] = get_args(Colour)
_WITHOUT_WEIGHTS: dict[str, Callable[[int, float], Masker]] = {
    "random": RandomMasker,
    "block": BlockMasker,
    "grid": GridMasker,
    **{colour: partial(ColourMasker, colour) for colour in _COLOURS},
}


def make_masker(
    config: MaskingConfig,
    model: Autoencoder,
    schedule: MaskingSchedule,
    *,
    hard_patches: HardPatchesConfig,
    learned: LearnedMaskingConfig,
    seed: int,
) -> Masker:
    """Make the configured masker for `model`, on its device, with weights drawn from `seed`.

    Raises ValueError if the ratio keeps or removes no patch, or a network does not fit the model.
    """
    for patches in model.grids:
        kept_patches(patches, config.mask_ratio)  # may raise ValueError
    if config.name == "hard-patches":
        return HardPatchesMasker(hard_patches, model, config.mask_ratio, schedule, seed)
    if config.name == "learned":
        return LearnedMasker(learned, model, config.mask_ratio, schedule, seed)
    maskers = {patches: _WITHOUT_WEIGHTS[config.name](patches, config.mask_ratio) for patches in model.grids}
    return (ByGrid(maskers) if len(maskers) > 1 else next(iter(maskers.values()))).to(model.device)
