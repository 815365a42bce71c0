"""Temperature, and the effective fraction of the data that it draws.

Prototype curriculum (Lin et al., CVPR 2025, arXiv 2411.10685). h in [0, 1] is an image's hardness, 0 = drawn first:

    p_i(tau) = exp(-h_i / tau) / sum_j exp(-h_j / tau)       probability of image i
    r(tau)   = (1/N) sum_i [1 - (1 - p_i)^N]                 effective fraction: distinct images in N draws, over N

r rises with tau up to 1 - (1 - 1/N)^N, about 0.632, where all images are equally likely. A schedule sets r, and tau is
found as its inverse. All in float64: float32 cannot represent 1 - p accurately for p near 1e-6.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mimcl.curriculum.balance import Balance
from mimcl.curriculum.bins import count
from mimcl.curriculum.hardness import Hardness

UNIFORM_WITHIN = 1e-3  # a target this close to r(infinity) is uniform
# Range of the search for tau, in octaves of the range of h. Below 2^-30 only images of the lowest h are drawn; above
# 2^4, r is within 2e-4 of r(infinity) for any distribution, which counts as uniform.
_OCTAVES = (-30.0, 4.0)
_BISECTIONS = 34  # leave 2e-9 octaves


def weights(h: NDArray[np.floating], tau: float, lowest: float) -> NDArray[np.float64]:
    """Return exp(-(h - lowest) / tau), shape of `h` (N,): p_tau before normalisation. `tau` may be math.inf."""
    result = np.float64(lowest) - h
    result /= tau
    return np.exp(result, out=result)


def p_tau(h: NDArray[np.floating], tau: float) -> NDArray[np.float64]:
    """Return each image's probability, shape of `h` (N,); a small `tau` favours the lowest h, math.inf is uniform."""
    result = weights(h, tau, float(h.min()))
    result /= result.sum()
    return result


def effective_fraction(p: NDArray[np.float64], counts: NDArray[np.int64] | None = None) -> float:
    """Return r, the expected share of distinct images in N multinomial draws from N images.

    `p` is the probability of each image or, with `counts`, of each of counts[k] images in bin k.
    """
    samples = len(p) if counts is None else int(counts.sum())
    with np.errstate(divide="ignore"):  # p = 1 is always drawn
        drawn = -np.expm1(samples * np.log1p(-p))
    return float(drawn.mean() if counts is None else (drawn * counts).sum() / samples)


def uniform_fraction(samples: int) -> float:
    """Return r(infinity) = 1 - (1 - 1/N)^N."""
    return effective_fraction(np.array([1 / samples]), np.array([samples]))


class EffectiveFraction:
    """r(tau) of one data set, and its inverse, from `bins` of h that are counted once.

    `lowest` is r(tau -> 0) and `uniform` is r(infinity), with balance less than that of equally likely images. Raises
    ValueError if all h are equal.
    """

    def __init__(self, h: NDArray[np.floating] | Hardness, balance: Balance | None = None, cut: bool = False) -> None:
        """`cut`: images of h up to tau, above the lowest, are equally likely, and others are not drawn."""
        self.bins = count(h, balance, cut)
        self.lowest = self(self.bins.span * 2 ** _OCTAVES[0])
        self.uniform = self(math.inf) if balance else uniform_fraction(len(h))

    def __call__(self, tau: float) -> float:
        """Return r(tau), for `tau` > 0 or math.inf."""
        return effective_fraction(self.bins.probabilities(tau), self.bins.images)

    def inverse(self, target: float) -> float:
        """Return tau with r(tau) = `target`: monotone, math.inf within 1e-3 of `uniform`, clamped below `lowest`."""
        if target > self.uniform - UNIFORM_WITHIN:
            return math.inf
        low, high = _OCTAVES
        if target <= self.lowest:
            return self.bins.span * 2**low
        # Bisection between fixed ends tries the same points for any target, so rounding in r cannot change the order of
        # two results, nor can the last bit of another CPU's exp change a result.
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            if self(self.bins.span * 2**middle) < target:
                low = middle
            else:
                high = middle
        return self.bins.span * 2**high
