"""The hardness of every image, computed on access, so that large data sets need no second array."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mimcl.curriculum.config import CurriculumConfig
from mimcl.curriculum.permutation import KeyedPermutation


class Hardness:
    """Hardness h (N,) of `distances` (N,) in [0, 1], with the array operations that plans and curves need.

    A slice is a float32 array, in the order of the distances or, if given, of `order`.
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

    def permuted(self, order: KeyedPermutation) -> Hardness:
        """Return the same hardness in the order of `order`."""
        return Hardness(self._config, self._distances, order)

    def min(self) -> np.float32:
        return min(self._ends())

    def max(self) -> np.float32:
        return max(self._ends())

    def _ends(self) -> tuple[np.float32, np.float32]:
        """h of the nearest image and of the farthest: h rises or falls with the distance."""
        return self._config.hardness(self._distances.min()), self._config.hardness(self._distances.max())
