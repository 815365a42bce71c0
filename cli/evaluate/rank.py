"""Evaluate an encoder, trained and untrained, without labels: by the number of dimensions that its features use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mimcl.cli.evaluate.cached_features import ENCODERS, Features, Source, load_encoder, on_cached_features
from mimcl.cli.evaluate.eval_options import LIDAR_IMAGES, LIDAR_VIEWS, FeatureOptions, SplitName
from mimcl.cli.evaluate.results import Result, record
from mimcl.model.evaluate.rank import DELTA, lidar, rank_me
from mimcl.model.world import World
from mimcl.pipeline.augment import STREAM_SAMPLE, hash64
from mimcl.pipeline.files import DataError
from mimcl.pipeline.index import ShardIndex

_RANK_ME_IMAGES = 25_600  # at most, as in the paper


def rank(
    path: Path,
    data: str | Path | None = None,
    split: SplitName = "train",
    images: int = LIDAR_IMAGES,
    views: int = LIDAR_VIEWS,
    options: FeatureOptions = FeatureOptions(),
    world: World | None = None,
) -> Result:
    """RankMe of the central crops of up to 25,600 images, and LiDAR of `views` random crops of up to `images` images.

    They are random subsets of the split, always the same. See `on_cached_features`. Raises DataError if the split is
    missing or has fewer than 2 good images, CheckpointError if there is no encoder.
    """
    world = world or World()
    encoder = load_encoder(path, world)
    index = ShardIndex.load(encoder.config.data.root if data is None else data, split)
    sources = rank_sources(index, images, views)
    settings = rank_settings(sources) | {"pool": options.pool}
    result = Result("rank", encoder.path, index.shown, 0, 0, classes=0, settings=settings, trained={})

    def evaluate(features: Sequence[Features], device: torch.device) -> dict[str, Any]:
        """Return fields of the result."""
        good = [source.good(of[0], options.max_bad) for source, of in zip(sources, features, strict=True)]
        if good[1].sum() < 2:
            raise DataError(f"fewer than 2 images of {index.shown} have features; LiDAR compares images")
        found: dict[str, Any] = {split: int(good[0].sum())}
        for name, crops, of_views in zip(ENCODERS, *features, strict=True):
            found[name] = ranks(crops[good[0]], of_views[good[1]], views, f"the {name} encoder")
        record(encoder, replace(result, **found), index)
        return found

    return replace(result, **on_cached_features(encoder, sources, options, world, evaluate))


def rank_sources(index: ShardIndex, images: int, views: int) -> tuple[Source, Source]:
    """Return the images of RankMe, and the views of LiDAR."""
    return Source(index, _subset(index, _RANK_ME_IMAGES)), Source(index, _subset(index, images), views)


def rank_settings(sources: tuple[Source, Source]) -> dict[str, Any]:
    """Return what the values depend on, besides the pooling and the images."""
    _, of_views = sources
    return {"split": of_views.index.split, "lidar_images": of_views.samples, "views": of_views.views, "delta": DELTA}


def ranks(
    crops: NDArray[np.float32], of_views: NDArray[np.float32], views: int, name: str = "the encoder"
) -> dict[str, float]:
    """Return "rank_me" of the features (N, D), "lidar" of those of all views (M, views * D), and D as "dimensions".

    Raises DataError, naming the encoder, if they are not all finite numbers.
    """
    try:
        found = {"rank_me": rank_me(crops), "lidar": lidar(of_views.reshape(len(of_views), views, -1))}
    except ValueError as error:
        raise DataError(f"{name}: {error}; give a checkpoint from before the training diverged") from None
    return found | {"dimensions": crops.shape[1]}


def _subset(index: ShardIndex, count: int) -> NDArray[np.int64] | None:
    """Return the rows, ascending, of a random subset that depends on the number of samples alone; None for all."""
    if count >= index.samples:
        return None
    keys = hash64(0, np.arange(index.samples), STREAM_SAMPLE)
    return np.sort(np.argpartition(keys, count)[:count])
