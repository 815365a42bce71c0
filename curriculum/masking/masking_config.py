"""The `masking`, `hard_patches` and `learned_masking` sections of the configuration; imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

_ALIASES = {"hpm": "hard-patches", "cl-mae": "learned"}


@dataclass(frozen=True)
class MaskingConfig:
    """Masking by name, its ratio, and when its schedules move. Raises ValueError for an invalid ratio."""

    name: Annotated[
        Literal[
            "random", "block", "grid", "green", "blue", "red", "purple", "hard-patches", "learned", "hpm", "cl-mae"
        ],
        "Masking; hpm is another name of hard-patches, cl-mae of learned.",
    ] = "random"
    mask_ratio: Annotated[float, "Share of the patches that is removed from every image, above 0 and below 1."] = 0.75
    clock: Annotated[Literal["epoch", "step"], "When the masking's schedules move; the published codes use epoch."] = (
        "epoch"
    )

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

    start_share: Annotated[float, "Share of the removed patches that are the hardest ones, at the start, 0 to 1."] = 0.0
    end_share: Annotated[float, "The same at the end of the run; in between it is linear."] = 0.5
    predictor_depth: Annotated[int | None, "Depth of the loss predictor; null: the decoder's.", "blocks"] = None
    ranking: Annotated[
        Literal["relative", "absolute"], "What the loss predictor learns: the order of the losses, or the losses."
    ] = "relative"
    ranking_weight: Annotated[float, "Weight of the predictor's loss."] = 1.0
    start_momentum: Annotated[float, "Momentum of the teacher at the start."] = 0.999
    end_momentum: Annotated[float, "Momentum of the teacher after momentum_epochs."] = 0.9999
    momentum_epochs: Annotated[float, "Time until the teacher's momentum is end_momentum.", "epochs"] = 100.0
    momentum_share: Annotated[
        float | None, "The same time as a share of the run; replaces momentum_epochs, if given."
    ] = None

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

    depth: Annotated[int, "Depth of the masking network.", "blocks"] = 5
    heads: Annotated[int, "Attention heads of the masking network."] = 4
    gauss_weight: Annotated[float, "Weight of the term that drives scores away from 1/2."] = 1.0
    kl_weight: Annotated[float, "Weight of the term that keeps the mean score at mask_ratio."] = 0.1
    kl_reduction: Annotated[Literal["sum", "mean"], "How that term is reduced over the images of a group."] = "sum"
    diversity_weight: Annotated[float, "Weight of the term that makes the masks of a group differ."] = 2.0
    group_size: Annotated[int, "Consecutive draws whose masks are compared.", "draws"] = 32
    second_every: Annotated[int, "Steps between two passes that train the masking network.", "steps"] = 1

    def __post_init__(self) -> None:
        for name in ("depth", "heads", "group_size", "second_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"learned_masking.{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("gauss_weight", "kl_weight", "diversity_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"learned_masking.{name} is {getattr(self, name)}; it must be finite and at least 0")
