"""RankMe and LiDAR as a measure of the model in training; it needs no labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mimcl.cli.encoders.bad_images import is_bad
from mimcl.cli.evaluate.rank import rank_settings, rank_sources, ranks
from mimcl.pipeline.files import DataError
from mimcl.pipeline.index import ShardIndex

_FEWEST, _MOST, _VIEWS = 256, 1000, 10  # for LiDAR; of a tenth of the images, views are an epoch


class OnlineRank:
    """rank_me and lidar of train images: a `Measure`."""

    name = "online_rank"

    def __init__(self, index: ShardIndex) -> None:
        """Raises DataError for a single image."""
        if index.samples < 2:
            raise DataError(f"{index.shown} has a single train image; LiDAR needs 2, or leave out --online-rank")
        images = min(max(index.samples // _VIEWS, _FEWEST), _MOST)
        self.sources = rank_sources(index, images, _VIEWS)
        self.settings: dict[str, Any] = rank_settings(self.sources) | {"train": self.sources[0].samples}

    def __call__(self, features: Sequence[NDArray[np.float32]]) -> dict[str, float]:
        """Return the effective numbers of dimensions."""
        crops, of_views = (of[~is_bad(of)] for of in features)
        if len(of_views) < 2 or not (np.isfinite(crops).all() and np.isfinite(of_views).all()):
            return {}
        found = ranks(crops, of_views, _VIEWS)
        return {name: value for name, value in found.items() if name != "dimensions"}
