"""The hardness of every image, made where it is looked at: of large data sets no second array is held."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mimcl.curriculum.config import CurriculumConfig


class Hardness:
    """h (N,) of a curriculum over `distances` (N,) in [0, 1]: as much of an array as plans and curves need.

    A slice or sample ids give float32, of the distances' order.
    """

    def __init__(self, config: CurriculumConfig, distances: NDArray[np.float32]) -> None:
        self._config, self._distances = config, distances

    def __len__(self) -> int:
        return len(self._distances)

    def __getitem__(self, rows: Any) -> NDArray[np.float32]:
        return self._config.hardness(self._distances[rows])

    def min(self) -> np.float32:
        return min(self._ends())

    def max(self) -> np.float32:
        return max(self._ends())

    def _ends(self) -> tuple[np.float32, np.float32]:
        """h of the nearest image and of the farthest: h rises or falls with the distance."""
        return self._config.hardness(self._distances.min()), self._config.hardness(self._distances.max())
