"""Hard patches mining (HPM: Wang et al., CVPR 2023, arXiv 2304.05919)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class HardPatchesConfig:
    """The share of the removed patches that are the hardest goes from `start_share` to `end_share` over training."""

    start_share: float = 0.0
    end_share: float = 0.5
    predictor_depth: int | None = None  # blocks; None: as many as the decoder has
    ranking: Literal["relative", "absolute"] = "relative"
    ranking_weight: float = 1.0
    start_momentum: float = 0.999  # of the teacher
    end_momentum: float = 0.9999
    momentum_epochs: float = 100.0  # until it is reached
    momentum_share: float | None = None  # of training until it is reached, instead of momentum_epochs
