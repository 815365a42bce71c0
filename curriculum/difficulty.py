"""What the images' probabilities depend on beside the temperature, and from it their weights."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from mimcl.curriculum.balance import Balance
from mimcl.curriculum.bins import CHUNK
from mimcl.curriculum.config import CurriculumConfig
from mimcl.curriculum.hardness import Hardness
from mimcl.curriculum.permutation import KeyedPermutation
from mimcl.curriculum.temperature import EffectiveFraction, weights

# Up to so many, h in the order of a permutation is kept: 128 MB. Without it planning takes twice as long.
_KEPT_IMAGES = 1 << 25
BELOW_1 = 1 - 2.0**-53  # the largest point: one may have been rounded to 1
Weights = Callable[[slice], NDArray[np.float64]]  # of the images in these rows


class Difficulty:
    """The distances (N,) in [0, 1] of all images, and their balance if they have one; `curve` is r(tau).

    A `curve` that was computed before may be given. Raises ValueError if all distances are equal.
    """

    def __init__(
        self,
        config: CurriculumConfig,
        distances: NDArray[np.float32],
        balance: Balance | None = None,
        curve: EffectiveFraction | None = None,
    ) -> None:
        self.distances, self._balance = distances, balance
        self._h = Hardness(config, distances)
        self._lowest = float(self._h.min())
        self._lowest_of_clusters = balance.lowest(self._h) if balance else np.empty(0)
        self._cut = config.name == "subset"
        self.curve = curve or EffectiveFraction(self._h, balance, self._cut)
        self._kept: tuple[KeyedPermutation, NDArray[np.float32]] | None = None  # an order, and h in it

    def find(self, points: NDArray[np.float64], tau: float, order: KeyedPermutation | None = None) -> NDArray[np.int64]:
        """Find the images at ascending `points` in [0, 1), if they lie end to end, each as wide as its p_tau.

        They lie in their own order or in `order`; the result are positions in it. Weights are computed twice, in chunks
        that fit the cache: to sum them, then to search in them. No array of N sums is made.
        """
        samples = len(self.distances)
        points = np.minimum(points, BELOW_1)
        if math.isinf(tau) and self._balance is None:
            return (points * samples).astype(np.int64)
        weights = self._weights(tau, order)
        starts = range(0, samples, CHUNK)
        ends = np.cumsum([weights(slice(start, start + CHUNK)).sum() for start in starts])
        points *= ends[-1]
        cuts = [0, *np.searchsorted(points, ends)]
        found = np.empty(len(points), np.int64)
        for number, start in enumerate(starts):
            inside = slice(cuts[number], cuts[number + 1])
            if inside.start == inside.stop:
                continue
            sums = np.cumsum(weights(slice(start, start + CHUNK)))
            within = points[inside] - (ends[number - 1] if number else 0)
            # The first image whose sum exceeds the point never has weight 0; below the last sum there is always one.
            within = np.minimum(within, np.nextafter(sums[-1], 0))
            found[inside] = start + np.searchsorted(sums, within, side="right")
        return found

    def _weights(self, tau: float, order: KeyedPermutation | None) -> Weights:
        """Return p_tau times a constant, float64, of rows in the order of the images or of `order`."""
        if self._balance:
            return self._balanced_weights(self._balance, tau, order)
        h = self._h if order is None else self._in_order(order)
        if self._cut:
            return lambda rows: (h[rows] - np.float64(self._lowest) <= tau).astype(np.float64)
        return lambda rows: weights(h[rows], tau, self._lowest)

    def _balanced_weights(self, balance: Balance, tau: float, order: KeyedPermutation | None) -> Weights:
        lowest = self._lowest_of_clusters

        def weights_in_cluster(rows: slice, order: KeyedPermutation | None) -> tuple[NDArray, NDArray]:
            h = self._h if order is None else self._h.permuted(order)
            cluster = balance.cluster[rows if order is None else order(np.arange(*rows.indices(len(h))))]
            return cluster, np.exp((lowest[cluster] - h[rows]) / tau)

        totals = np.zeros(len(lowest))
        for start in range(0, len(self._h), CHUNK):
            cluster, inside = weights_in_cluster(slice(start, start + CHUNK), None)
            totals += np.bincount(cluster % len(totals), inside, len(totals))
        share = np.divide(np.append(balance.mass, 0.0), totals, out=np.zeros_like(totals), where=totals > 0)

        def weights_of(rows: slice) -> NDArray[np.float64]:
            cluster, inside = weights_in_cluster(rows, order)
            return share[cluster] * inside

        return weights_of

    def _in_order(self, order: KeyedPermutation) -> Hardness | NDArray[np.float32]:
        """Return h in that order; if it is kept, computed once for the windows of a block, which share the order."""
        ordered = self._h.permuted(order)
        if len(ordered) > _KEPT_IMAGES:
            return ordered
        if self._kept is None or self._kept[0] is not order:
            chunks = [ordered[start : start + CHUNK] for start in range(0, len(ordered), CHUNK)]
            self._kept = order, np.concatenate(chunks)
        return self._kept[1]
