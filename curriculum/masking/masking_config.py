"""The `masking`, `hard_patches` and `learned_masking` sections of the configuration; imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

_ALIASES = {"hpm": "hard-patches", "cl-mae": "learned"}


@dataclass(frozen=True)
class MaskingConfig:
    """Masking by name. `mask_ratio` is the share of patches removed from every image.

    `clock`: schedules move at every epoch, as in the published codes, or at every step.
    """

    name: Literal["random", "block", "grid", "hard-patches", "learned", "hpm", "cl-mae"] = "random"
    mask_ratio: float = 0.75
    clock: Literal["epoch", "step"] = "epoch"

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", _ALIASES.get(self.name, self.name))
        if not 0.0 < self.mask_ratio < 1.0:
            raise ValueError(f"masking.mask_ratio is {self.mask_ratio}; it must be between 0 and 1, such as MAE's 0.75")


@dataclass(frozen=True)
class HardPatchesConfig:
    """Over training, the share of the hardest patches among the removed ones goes from `start_share` to `end_share`.

    The paper's ablation (fine-tuned accuracy of ViT-B, apparently after 200 epochs):

        start_share  end_share
            0.0         0.5      easy to hard, the default: 82.95
            0.5         0.0      hard to easy: 81.71
            1.0         1.0      always the hardest: 81.40
            0.0         0.0      random masks, with the loss predictor: 82.49

    The published code raises the teacher's momentum over 100 epochs, for any length of training.
    """

    start_share: float = 0.0
    end_share: float = 0.5
    predictor_depth: int | None = None  # blocks; None: as many as in the decoder
    ranking: Literal["relative", "absolute"] = "relative"
    ranking_weight: float = 1.0
    start_momentum: float = 0.999  # of the teacher
    end_momentum: float = 0.9999
    momentum_epochs: float = 100.0  # until end_momentum is reached
    momentum_share: float | None = None  # the same as a share of training; replaces momentum_epochs

    def __post_init__(self) -> None:
        for name in ("start_share", "end_share"):
            if not 0 <= (share := getattr(self, name)) <= 1:
                raise ValueError(f"hard_patches.{name} is {share}; it must be between 0 and 1")
        for name in ("start_momentum", "end_momentum"):
            if not 0 <= (momentum := getattr(self, name)) < 1:
                raise ValueError(f"hard_patches.{name} is {momentum}; it must be at least 0 and below 1")
        for name in ("ranking_weight", "momentum_epochs"):
            if not 0 < (value := getattr(self, name)) < math.inf:
                raise ValueError(f"hard_patches.{name} is {value}; it must be above 0")
        if self.momentum_share is not None and not 0 < self.momentum_share <= 1:
            raise ValueError(f"hard_patches.momentum_share is {self.momentum_share}; it must be above 0 and at most 1")
        if self.predictor_depth is not None and self.predictor_depth < 1:
            raise ValueError(f"hard_patches.predictor_depth is {self.predictor_depth}; it must be at least 1")


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
    second_every: int = 1  # steps between two second passes

    def __post_init__(self) -> None:
        for name in ("depth", "heads", "group_size", "second_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"learned_masking.{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("gauss_weight", "kl_weight", "diversity_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"learned_masking.{name} is {getattr(self, name)}; it must be finite and at least 0")
