"""How many dimensions features use, measured without labels: RankMe and LiDAR.

Both are effective ranks, exp(entropy) of a spectrum divided by its sum: a spectrum of r equal values has the effective
rank r. Computed in float64 on the host. The papers add a small constant to the shares to avoid log 0; here 0 log 0 = 0.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

DELTA = 1e-4  # added to the within-class variances
_ROUNDING = 1e-6  # of float32 features, relative to their size
_IMAGES = 256  # at a time


def rank_me(features: ArrayLike) -> float:
    """RankMe (Garrido et al., ICML 2023, arXiv 2210.02885) of features (N, D): at most min(N, D); 0 if all are zero.

    The spectrum is that of the singular values; the features are not centred. Raises ValueError if they are not finite.
    """
    return _effective_rank(torch.linalg.svdvals(torch.from_numpy(_finite(features)).double()))


def lidar(views: ArrayLike, delta: float = DELTA) -> float:
    """LiDAR (Thilak et al., ICLR 2024, arXiv 2312.04000) of the features of Q views of N images each, (N, Q, D).

    Each image is a class. The spectrum is that of W^-1/2 B W^-1/2, where B is the covariance of the images' means and W
    the mean covariance of an image's views plus `delta` times the identity: at most min(N - 1, D). 0 if the means
    differ by no more than float32 rounding. Raises ValueError for fewer than 2 images or views, or infinite features.
    """
    x = _finite(views)
    if x.ndim != 3 or min(x.shape[:2]) < 2:
        raise ValueError(f"LiDAR needs at least 2 views of at least 2 images (shape {x.shape})")
    images, count, width = x.shape
    means = torch.empty(images, width, dtype=torch.float64)
    within = torch.zeros(width, width, dtype=torch.float64)
    for start in range(0, images, _IMAGES):
        block = torch.from_numpy(x[start : start + _IMAGES]).double()
        means[start : start + _IMAGES] = block.mean(dim=1)
        rest = (block - block.mean(dim=1, keepdim=True)).flatten(0, 1)
        within += rest.T @ rest
    within = within / (images * (count - 1)) + delta * torch.eye(width, dtype=torch.float64)
    centred = means - means.mean(dim=0)
    if centred.square().sum() <= _ROUNDING**2 * means.square().sum():
        return 0.0
    # With W = L L', L^-1 B L^-T has the same eigenvalues: the squared singular values of the whitened means.
    whitened = torch.linalg.solve_triangular(torch.linalg.cholesky(within), centred.T, upper=False)
    return _effective_rank(torch.linalg.svdvals(whitened).square())


def _finite(features: ArrayLike) -> NDArray[np.float32]:
    array = np.ascontiguousarray(features, np.float32)
    if not np.isfinite(array).all():
        raise ValueError("the features are not all finite numbers")
    return array


def _effective_rank(spectrum: Tensor) -> float:
    """exp(entropy) of non-negative values (K,) divided by their sum; 0 if all are zero."""
    total = spectrum.sum()
    if total <= 0:
        return 0.0
    shares = spectrum / total
    return math.exp(-torch.xlogy(shares, shares).sum().item())
