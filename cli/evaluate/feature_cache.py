"""Features kept on the disk in blocks: no image is decoded twice, not by the next evaluator, not after a kill."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from mimcl.cli.encoders.feature_store import RowParts
from mimcl.cli.encoders.split_features import BATCH

_MOST_BATCHES = 64  # of a block: 12.6 MB of ViT-B's features


def feature_cache(folder: Path, samples: int, width: int) -> RowParts:
    """For the features (N, D), float32, of a split's `samples` images by one encoder, in blocks of whole batches."""
    # A small split has blocks enough for several processes too.
    rows = BATCH * min(_MOST_BATCHES, math.ceil(samples / (BATCH * 64)))
    blocks = [range(first, min(first + rows, samples)) for first in range(0, samples, rows)]
    return RowParts(folder, blocks, np.float32, (width,))
