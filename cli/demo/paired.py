"""The difference between two classifiers on the same images."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_NORMAL_95 = 1.96  # standard errors


@dataclass(frozen=True)
class Difference:
    """A difference of two accuracies, and its standard error for the choice of the images."""

    value: float
    standard_error: float

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the normal approximation."""
        return self.value - _NORMAL_95 * self.standard_error, self.value + _NORMAL_95 * self.standard_error


def paired_difference(correct: NDArray[np.bool_], other: NDArray[np.bool_]) -> Difference:
    """Return the accuracy of `correct` minus that of `other`, bool (M,) for the same M images.

    The standard error is that of a mean of M differences -1, 0 or 1: images on which both agree add no error (as in
    McNemar's test). Raises ValueError for different numbers of images or none.
    """
    if correct.shape != other.shape or not correct.size:
        raise ValueError(f"{correct.size} and {other.size} images; both must have the same images, at least one")
    differences = correct.astype(np.float64) - other
    return Difference(float(differences.mean()), float(differences.std()) / math.sqrt(correct.size))
