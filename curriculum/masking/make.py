"""The masker that a configuration names."""

from __future__ import annotations

from mimcl.curriculum.masking.block import BlockMasker
from mimcl.curriculum.masking.grid import GridMasker
from mimcl.curriculum.masking.masker import Masker, MaskingConfig
from mimcl.curriculum.masking.random import RandomMasker

_MAKERS = {"random": RandomMasker, "block": BlockMasker, "grid": GridMasker}


def make_masker(config: MaskingConfig, patches: int) -> Masker:
    """For images of `patches` patches, a square number; ValueError when the ratio keeps or removes none of them."""
    return _MAKERS[config.name](patches, config.mask_ratio)
