"""Features of a whole split: central crops of all its images, in order, through an extractor."""

from __future__ import annotations

import math
import os
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from mimcl.cli.console import console, image_bar
from mimcl.model.distributed import World, gather_rows
from mimcl.pipeline.augment import central_crops
from mimcl.pipeline.decode import Decoder, make_decoder
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.plan import InOrder
from mimcl.pipeline.stream import Stream

_BATCH = 64


def open_decoder(name: str, image_size: int, *splits: ShardIndex) -> Decoder:
    """The named decoder for crops of that side out of the splits' images; prints which and why. Raises DataError."""
    largest = max(split.largest for split in splits)
    decoder, choice = make_decoder(name, image_size, _BATCH, os.cpu_count() or 1, largest)
    console.print(choice)
    return decoder


def sample_images(index: ShardIndex, decoder: Decoder, count: int) -> torch.Tensor:
    """At most `count` images spread evenly over the split, uint8 (n, 3, S, S), for extractors that learn constants."""
    return torch.cat(
        [
            batch.images
            for batch in _stream(index, decoder, np.arange(0, index.samples, math.ceil(index.samples / count)))
        ]
    )


def extract(
    index: ShardIndex,
    extractor: Callable[[torch.Tensor], NDArray[np.float32]],
    decoder: Decoder,
    label: str,
    world: World | None = None,
) -> NDArray[np.float32]:
    """Features of all samples in row order, float32 (N, D), on every rank, with a progress bar called `label`.

    `extractor` maps uint8 images (B, 3, S, S) to (B, D). The ranks of `world` share the work.
    """
    world = world or World()
    share = np.arange(world.rank * index.samples // world.size, (world.rank + 1) * index.samples // world.size)
    found = []
    with image_bar(label, len(share), shown=world.rank == 0) as advance:
        for batch in _stream(index, decoder, share):
            found.append(torch.from_numpy(extractor(batch.images)))
            advance(len(found[-1]))
    return gather_rows(torch.cat(found)).numpy()


def _stream(index: ShardIndex, decoder: Decoder, sample_ids: NDArray[np.int64]) -> Stream:
    return Stream(
        InOrder(sample_ids),
        index,
        decoder,
        central_crops,
        seed=0,  # nothing here is random
        batch_size=_BATCH,
        micro_batch_size=_BATCH,
        prefetch=4,
        device="cuda" if torch.cuda.is_available() else "cpu",
    )
