"""Equal probability mass for every cluster, so that large clusters do not dominate the draws.

Vo et al. (TMLR 2024, arXiv 2405.15613) sample evenly over a hierarchy of clusters instead of over images. Here windows
do so at any temperature: cluster c has a mass m_c, and its images share it as they would share the whole,

    p_i(tau) = m_c exp(-h_i / tau) / sum_{j in c} exp(-h_j / tau),    m_c = 1 / (G n_g)

with G clusters of the upper level and n_g clusters in the one that c belongs to; with one level m_c = 1 / K. Clusters
without images do not count.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mimcl.curriculum.hardness import Hardness

_CHUNK = 1 << 16  # images at once


@dataclass(frozen=True)
class Balance:
    """The cluster of each image, and the probability mass of each cluster."""

    cluster: NDArray[np.int32]  # (N,), -1 for an image in none, which is never drawn
    mass: NDArray[np.float64]  # (K,), with sum 1
    groups: int = 1  # clusters of the upper level that have images

    @property
    def clusters(self) -> int:
        """The number of clusters that have images."""
        return int(np.count_nonzero(self.mass))

    @classmethod
    def of(cls, cluster: NDArray[np.int32], parents: NDArray[np.int32] | None = None) -> Balance:
        """Balance clusters (N,), evenly or within their `parents` (K,). Raises ValueError if no image is in one."""
        sizes = np.bincount(cluster[cluster >= 0], minlength=0 if parents is None else len(parents))
        used = sizes > 0
        if not used.any():
            raise ValueError("no image is in a cluster, so there is nothing to balance; build a prototype set")
        parents = np.zeros(len(sizes), np.int32) if parents is None else parents
        children = np.bincount(parents[used])
        groups = int(np.count_nonzero(children))
        mass = np.zeros(len(sizes))
        mass[used] = 1 / (groups * children[parents[used]])
        return cls(cluster, mass, groups)

    def lowest(self, h: NDArray[np.floating] | Hardness) -> NDArray[np.float64]:
        """Return the lowest h of each cluster, and last of the images in none: (K + 1,), inf where there are none."""
        lowest = np.full(len(self.mass) + 1, np.inf)
        for start in range(0, len(h), _CHUNK):
            rows = slice(start, start + _CHUNK)
            np.minimum.at(lowest, self.cluster[rows], h[rows])  # -1 is the last
        return lowest
