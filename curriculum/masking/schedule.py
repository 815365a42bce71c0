"""Where schedules over a run stand: they move at every step, or at every epoch as in the published codes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

_ROUNDING = 1e-9  # epochs: far below one draw, far above what float64 loses


@dataclass(frozen=True)
class Clock:
    """Of a run that was asked to last `epochs` and has `draws_per_sample`, which is up to a batch longer.

    Progress is the share of the draws that are done, a float64 tensor without dimension; so is what comes back.
    """

    ticks: Literal["epoch", "step"]
    epochs: float
    draws_per_sample: float

    @property
    def whole_epochs(self) -> int:
        """The number of epochs that begin, E; an epoch is as many draws as there are samples."""
        return max(1, math.ceil(self.epochs - _ROUNDING))

    def epoch(self, progress: Tensor) -> Tensor:
        """The current epoch e = 0, 1, ..., E - 1; a fraction where the clock ticks at steps."""
        epoch = progress * self.draws_per_sample
        return epoch if self.ticks == "step" else (epoch + _ROUNDING).floor().clamp(max=self.whole_epochs - 1)

    def share_begun(self, progress: Tensor) -> Tensor:
        """Of training: (e + 1) / E in epoch e, or the progress itself."""
        return progress if self.ticks == "step" else (self.epoch(progress) + 1) / self.whole_epochs
