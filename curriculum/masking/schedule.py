"""Progress of masking schedules: they move at every step, or at every epoch as in the published codes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

_ROUNDING = 1e-9  # epochs: far below one draw, far above the rounding of float64


@dataclass(frozen=True)
class MaskingSchedule:
    """Epochs and progress of a run configured for `epochs`; `draws_per_sample` is longer by up to one batch.

    Progress is the share of the run's draws that are done, a 0-d float64 tensor; so are the results.
    """

    clock: Literal["epoch", "step"]
    epochs: float
    draws_per_sample: float

    @property
    def num_epochs(self) -> int:
        """Number of epochs that begin, E; an epoch has as many draws as there are samples."""
        return max(1, math.ceil(self.epochs - _ROUNDING))

    def epoch(self, progress: Tensor) -> Tensor:
        """Return the current epoch e = 0, 1, ..., E - 1, or a fractional epoch with clock "step"."""
        epoch = progress * self.draws_per_sample
        return epoch if self.clock == "step" else (epoch + _ROUNDING).floor().clamp(max=self.num_epochs - 1)

    def clocked_progress(self, progress: Tensor) -> Tensor:
        """Return the progress at the end of the current epoch, (e + 1) / E, or `progress` itself with clock "step"."""
        return progress if self.clock == "step" else (self.epoch(progress) + 1) / self.num_epochs
