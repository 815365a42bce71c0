"""Temperature, the effective fraction of the data that it draws, and schedules of that fraction.

Prototype curriculum (Lin et al., CVPR 2025, arXiv 2411.10685). h in [0, 1] is an image's hardness, 0 = drawn first:

    p_i(tau) = exp(-h_i / tau) / sum_j exp(-h_j / tau)       probability of image i
    r(tau)   = (1/N) sum_i [1 - (1 - p_i)^N]                 effective fraction: distinct images in N draws, over N

r rises with tau up to 1 - (1 - 1/N)^N, about 0.632, where all images are equally likely. A schedule sets r, and tau is
found as its inverse. All in float64: float32 cannot represent 1 - p accurately for p near 1e-6.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from mimcl.curriculum.hardness import Hardness

_CHUNK = 1 << 16  # images per chunk, so that temporaries fit the CPU cache
_BINS = 1 << 15  # of the histogram of h
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
    """r(tau) of one data set, and its inverse, from a histogram of h that is built once.

    A bin is represented by the mean of its members. Bins have equal width in the fourth root of h over its range, since
    small temperatures resolve small h. The images at the lowest and highest h, which are many (a prototype per
    cluster), have bins of their own and are exact. `lowest` is r(tau -> 0) and `uniform` is r(infinity). Raises
    ValueError if all h are equal.
    """

    def __init__(self, h: NDArray[np.floating] | Hardness) -> None:
        low, high = float(h.min()), float(h.max())
        if not low < high:
            raise ValueError(f"all {len(h)} distances are equal ({low:g}); rebuild the prototypes")
        counts, sums = np.zeros(_BINS + 2, np.int64), np.zeros(_BINS + 2)
        for start in range(0, len(h), _CHUNK):
            place = (h[start : start + _CHUNK] - np.float64(low)) / (high - low)
            bins = np.ceil(np.sqrt(np.sqrt(place)) * _BINS).astype(np.int64) + (place == 1)
            counts += np.bincount(bins, minlength=_BINS + 2)
            sums += np.bincount(bins, place, minlength=_BINS + 2)
        used = counts > 0
        self._counts, self._place = counts[used], sums[used] / counts[used]
        self._low, self._range = low, high - low
        self.lowest = self(self._range * 2 ** _OCTAVES[0])
        self.uniform = self(math.inf)

    @property
    def histogram(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """The mean h of each bin, ascending, and its number of images."""
        return self._low + self._place * self._range, self._counts

    def __call__(self, tau: float) -> float:
        """Return r(tau), for `tau` > 0 or math.inf."""
        p = np.exp(self._place * (-self._range / tau))
        p /= (p * self._counts).sum()
        return effective_fraction(p, self._counts)

    def inverse(self, target: float) -> float:
        """Return tau with r(tau) = `target`: monotone, math.inf within 1e-3 of `uniform`, clamped below `lowest`."""
        if target > self.uniform - UNIFORM_WITHIN:
            return math.inf
        low, high = _OCTAVES
        if target <= self.lowest:
            return self._range * 2**low
        # Bisection between fixed ends tries the same points for any target, so rounding in r cannot change the order of
        # two results, nor can the last bit of another CPU's exp change a result.
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            if self(self._range * 2**middle) < target:
                low = middle
            else:
                high = middle
        return self._range * 2**high


# Schedules: the target r at progress t in [0, 1], from r0 to r_inf = r(infinity).


def cosine(t: float, r0: float, r_inf: float) -> float:
    """Slow at both ends; the paper's schedule."""
    return r0 + (r_inf - r0) * (1 - math.cos(math.pi * t)) / 2


def linear(t: float, r0: float, r_inf: float) -> float:
    """A straight line; the reference code's schedule."""
    return r0 + (r_inf - r0) * t


def exponential(t: float, r0: float, r_inf: float) -> float:
    """Grow by the same factor in equal intervals."""
    return r0 * (r_inf / r0) ** t


def step(t: float, r0: float, r_inf: float) -> float:
    """Four stages of equal length, the last with all data."""
    return r0 + (r_inf - r0) * min(math.floor(4 * t), 3) / 3


SCHEDULES: dict[str, Callable[[float, float, float], float]] = {
    "cosine": cosine,
    "linear": linear,
    "exponential": exponential,
    "step": step,
}
