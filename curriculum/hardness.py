"""The hardness of every image, made where it is looked at: of large data sets no second array is held."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mimcl.curriculum.config import CurriculumConfig
from mimcl.curriculum.permutation import KeyedPermutation


class Hardness:
    """h (N,) of a curriculum over `distances` (N,) in [0, 1]: as much of an array as plans and curves need.

    A slice gives float32, in the order of the distances, or in that of `order`.
    """

    def __init__(
        self, config: CurriculumConfig, distances: NDArray[np.float32], order: KeyedPermutation | None = None
    ) -> None:
        self._config, self._distances, self._order = config, distances, order

    def __len__(self) -> int:
        return len(self._distances)

    def __getitem__(self, rows: slice) -> NDArray[np.float32]:
        chosen = self._order(np.arange(*rows.indices(len(self)))) if self._order else rows
        return self._config.hardness(self._distances[chosen])

    def min(self) -> np.float32:
        return min(self._ends())

    def max(self) -> np.float32:
        return max(self._ends())

    def _ends(self) -> tuple[np.float32, np.float32]:
        """h of the nearest image and of the farthest: h rises or falls with the distance."""
        return self._config.hardness(self._distances.min()), self._config.hardness(self._distances.max())
