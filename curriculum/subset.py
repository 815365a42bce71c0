"""A random subset of the images that grows: the control of a curriculum.

A curriculum that starts from typical images also starts from few images. Its control draws as many different images,
but random ones: each image has a random rank in [0, 1], and at temperature tau those of a rank of at most tau, plus the
lowest, are equally likely. So subsets are nested, and a schedule of the effective fraction sets their size.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mimcl.curriculum.hashing import Hash64
from mimcl.curriculum.permutation import KeyedPermutation

STREAM_SUBSET = 22  # the order in which images join; beside the stream numbers of `plan.py`


def subset_ranks(samples: int, seed: int, hash64: Hash64) -> NDArray[np.float32]:
    """Return the rank of each image (N,), evenly spaced in [0, 1], in an order keyed by the seed."""
    order = KeyedPermutation(samples, int(hash64(seed, 0, STREAM_SUBSET)[0]), hash64)
    return (order(np.arange(samples)) / max(1, samples - 1)).astype(np.float32)
