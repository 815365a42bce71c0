"""Learned masks that get harder (CL-MAE: Madan et al., WACV 2024, arXiv 2308.16572)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class LearnedMaskingConfig:
    """The masking network, the weights of its objective's terms, and how often it is trained."""

    depth: int = 5  # blocks
    heads: int = 4
    gauss_weight: float = 1.0
    kl_weight: float = 0.1
    kl_reduction: Literal["sum", "mean"] = "sum"  # over the images of a group
    diversity_weight: float = 2.0
    group_size: int = 32  # consecutive draws
    second_every: int = 1  # steps: the second pass comes in one of so many
