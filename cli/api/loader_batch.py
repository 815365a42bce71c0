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
    step: int  # number of the batch in the run, from 0
    temperature: float  # inf: all images are equally likely
    effective_fraction: float  # expected share of distinct images in N draws


class BatchConversion:
    """Makes a LoaderBatch of a stream's Batch, on the device."""

    def __init__(
        self,
        batch_size: int,
        seed: int,
        views: int,
        transform: BatchTransform | None,
        normalize: bool,
        device: torch.device,
    ) -> None:
        """`batch_size` is that of all processes."""
        self._batch_size = batch_size
        self._seeds = [view_seed(seed, view) for view in range(views)]
        self._transform, self._device = transform, device
        constants = (torch.tensor(values, device=device).view(3, 1, 1) for values in (MEAN, STD))
        self._mean_and_std = tuple(constants) if normalize else None

    def __call__(self, batch: Batch) -> LoaderBatch:
        """Raises ConfigError if the transform does not return as many images."""
        images = batch.images.unflatten(0, (len(self._seeds), -1))  # (V, n, 3, H, W)
        if self._transform is not None:
            views = zip(images, self._seeds, strict=True)
            images = torch.stack([self._transformed(view, int(batch.draws[0]), seed) for view, seed in views])
        if self._mean_and_std is not None:
            mean, std = self._mean_and_std
            images = (images.float() / 255 if images.dtype == torch.uint8 else images).sub(mean).div_(std)
        keys = [batch.keys, *(self._keys(batch.draws, seed) for seed in self._seeds[1:])]
        several = len(self._seeds) > 1
        return LoaderBatch(
            images=images if several else images[0],
            labels=torch.from_numpy(batch.labels.astype(np.int64)).to(self._device, non_blocking=True),
            keys=torch.stack(keys) if several else keys[0],
            distances=batch.distances,
            sample_ids=torch.from_numpy(batch.sample_ids),
            draws=torch.from_numpy(batch.draws),
            step=batch.position // self._batch_size - 1,
            temperature=batch.window.temperature,
            effective_fraction=batch.window.effective_fraction,
        )

    def _transformed(self, images: Tensor, first_draw: int, seed: int) -> Tensor:
        """Transform a view of this process's draws."""
        assert self._transform is not None
        count = len(images)
        with _seeded(int(hash64(seed, first_draw, STREAM_TRANSFORM).view(np.int64)[0]), self._device):
            changed = self._transform(images)
        if not isinstance(changed, Tensor) or changed.shape[:1] != (count,):
            found = f"shape {tuple(changed.shape)}" if isinstance(changed, Tensor) else type(changed).__name__
            raise ConfigError(f"transform returned {found} for {count} images; it must return a tensor of {count}")
        return changed

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
