"""The batches of a loader, made from those of the stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mimcl.cli.errors import ConfigError
from mimcl.model.mae import MEAN, STD
from mimcl.pipeline.augment import STREAM_MASK, STREAM_TRANSFORM, hash64, view_seed
from mimcl.pipeline.stream import Batch

BatchTransform = Callable[[Tensor], Tensor]  # (n, 3, H, W) to (n, ...)


class LoaderBatch(NamedTuple):
    """This process's n draws of a batch. With several views images and keys have the views first: (V, n, ...)."""

    images: Tensor  # (n, 3, H, W), on the device: uint8, normalised float32, or what `transform` makes of them
    labels: Tensor  # int64 (n,), on the device; -1: none
    keys: Tensor  # int64 (n,), on the device: random bits of each draw, for masks and other noise
    distances: Tensor  # float32 (n,), on the device: to the prototype, or the scaled score; NaN without a curriculum
    sample_ids: Tensor  # int64 (n,), on the host: rows of the index
    draws: Tensor  # int64 (n,), on the host: numbers of the draws
    temperature: float  # inf: all images are equally likely
    effective_fraction: float  # expected share of distinct images in N draws


class BatchConversion:
    """Makes a LoaderBatch of a stream's Batch, on the device."""

    def __init__(
        self, seed: int, views: int, transform: BatchTransform | None, normalize: bool, device: torch.device
    ) -> None:
        self._seeds = [view_seed(seed, view) for view in range(views)]
        self._transform, self._device = transform, device
        constants = (torch.tensor(values, device=device).view(3, 1, 1) for values in (MEAN, STD))
        self._mean_and_std = tuple(constants) if normalize else None

    def __call__(self, batch: Batch) -> LoaderBatch:
        """Raises ConfigError if the transform does not return as many images."""
        views = zip(batch.images.split(len(batch.draws)), self._seeds, strict=True)
        images = [self._finished(images, batch.draws, seed) for images, seed in views]
        keys = [batch.keys, *(self._keys(batch.draws, seed) for seed in self._seeds[1:])]
        several = len(images) > 1
        return LoaderBatch(
            images=torch.stack(images) if several else images[0],
            labels=torch.from_numpy(batch.labels.astype(np.int64)).to(self._device, non_blocking=True),
            keys=torch.stack(keys) if several else keys[0],
            distances=batch.distances,
            sample_ids=torch.from_numpy(batch.sample_ids),
            draws=torch.from_numpy(batch.draws),
            temperature=batch.window.temperature,
            effective_fraction=batch.window.effective_fraction,
        )

    def _finished(self, images: Tensor, draws: NDArray[np.int64], seed: int) -> Tensor:
        """Transform and normalise a view."""
        if self._transform is not None:
            count = len(images)
            with _seeded(int(hash64(seed, draws[0], STREAM_TRANSFORM).view(np.int64)[0]), self._device):
                images = self._transform(images)
            if not isinstance(images, Tensor) or images.shape[:1] != (count,):
                found = f"shape {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
                raise ConfigError(f"transform returned {found} for {count} images; it must return a tensor of {count}")
        if self._mean_and_std is None:
            return images
        mean, std = self._mean_and_std
        return (images.float() / 255 if images.dtype == torch.uint8 else images).sub(mean).div_(std)

    def _keys(self, draws: NDArray[np.int64], seed: int) -> Tensor:
        keys = torch.from_numpy(hash64(seed, draws, STREAM_MASK).view(np.int64))
        return keys.to(self._device, non_blocking=True)


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's generators of the host and of the device for the block, and restore them."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            torch.cuda.manual_seed(seed)
        yield
