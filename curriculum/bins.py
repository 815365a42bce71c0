"""Images counted by hardness, from which probabilities at any temperature follow without reading all images again."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mimcl.curriculum.balance import Balance
from mimcl.curriculum.hardness import Hardness

CHUNK = 1 << 16  # images at once, so that temporaries fit the CPU cache
_BINS = 1 << 15
_BALANCED_BINS, _FEWEST = 1 << 20, 64  # over all clusters, but at least so many in each


@dataclass(frozen=True)
class Bins:
    """Groups of images of similar hardness, each represented by its mean; with balance, also of the same cluster.

    All arrays are (B,), by cluster and rising hardness.
    """

    place: NDArray[np.float64]  # mean of h, above the lowest h of the cluster, in units of `span`
    images: NDArray[np.int64]  # how many
    lowest: NDArray[np.float64]  # h of the cluster's easiest image
    mass: NDArray[np.float64]  # of the cluster
    first: NDArray[np.bool_]  # whether it is the first bin of a cluster
    span: float  # of all h
    cut: bool = False  # whether the images below a temperature are equally likely, instead of p_tau

    @property
    def h(self) -> NDArray[np.float64]:
        """The mean h (B,) of each bin."""
        return self.lowest + self.place * self.span

    def probabilities(self, tau: float | NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the probability of each image of a bin at `tau` > 0, or math.inf: (B,), or (W, B) of taus (W, 1)."""
        p = np.exp(self.place * (-self.span / tau)) if not self.cut else 1.0 * (self.place * self.span <= tau)
        starts = np.flatnonzero(self.first)
        if len(starts) == 1:
            p /= (p * self.images).sum(-1, keepdims=True)
            return p
        totals = np.add.reduceat(p * self.images, starts, axis=-1)
        p *= (self.mass[starts] / totals)[..., np.cumsum(self.first) - 1]
        return p

    def merged(self, most: int) -> Bins:
        """Return about `most` bins, or two for each cluster if that is more; those at both ends of h stay."""
        step = math.ceil(len(self.place) / most)
        places = np.arange(len(self.place))
        rank = places - np.maximum.accumulate(np.where(self.first, places, 0))  # in its cluster
        starts = np.flatnonzero(self.first | ((rank - 1) % step == 0) | (places == len(places) - 1))
        images = np.add.reduceat(self.images, starts)
        place = np.add.reduceat(self.place * self.images, starts) / images
        return Bins(place, images, self.lowest[starts], self.mass[starts], self.first[starts], self.span, self.cut)


def count(h: NDArray[np.floating] | Hardness, balance: Balance | None = None, cut: bool = False) -> Bins:
    """Count images of hardness h (N,); `cut` as in Bins. Raises ValueError if all h are equal.

    Bins have equal width in the fourth root of h over its range, since small temperatures resolve small h. The images
    at the lowest and highest h, which are many (a prototype per cluster), have bins of their own and are exact.
    """
    low, high = float(h.min()), float(h.max())
    if not low < high:
        raise ValueError(f"all {len(h)} distances are equal ({low:g}); rebuild the prototypes")
    clusters, bins, lowest, mass = 1, _BINS, np.array([low]), np.ones(1)
    if balance:
        clusters = len(balance.mass) + 1  # the last for images in none
        bins = min(_BINS, max(_FEWEST, _BALANCED_BINS // clusters))
        lowest, mass = balance.lowest(h), np.append(balance.mass, 0.0)
    row = bins + 2  # bins of a cluster
    images, sums = np.zeros(clusters * row, np.int64), np.zeros(clusters * row)
    for start in range(0, len(h), CHUNK):
        rows = slice(start, start + CHUNK)
        cluster = balance.cluster[rows].astype(np.int64) % clusters if balance else 0
        place = (h[rows] - lowest[cluster]) / (high - low)
        number = cluster * row + np.ceil(np.sqrt(np.sqrt(place)) * bins).astype(np.int64) + (place == 1)
        images += np.bincount(number, minlength=len(images))
        sums += np.bincount(number, place, minlength=len(images))
    (used,) = np.nonzero(images)
    cluster = used // row
    first = np.diff(cluster, prepend=-1) > 0
    return Bins(sums[used] / images[used], images[used], lowest[cluster], mass[cluster], first, high - low, cut)
