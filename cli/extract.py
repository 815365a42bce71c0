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

BATCH = 64  # images that go through an extractor at a time


def open_decoder(name: str, image_size: int, *splits: ShardIndex, world: World | None = None) -> Decoder:
    """The named decoder for crops of that side out of the splits' images; rank 0 prints which and why.

    The processes of a machine share its cores. Raises DataError.
    """
    world = world or World()
    largest = max(split.largest for split in splits)
    threads = max(1, (os.cpu_count() or 1) // world.local_size)
    decoder, choice = make_decoder(name, image_size, BATCH, threads, largest)
    if world.rank == 0:
        console.print(choice)
    return decoder


def sample_images(index: ShardIndex, decoder: Decoder, count: int) -> torch.Tensor:
    """At most `count` images spread evenly over the split, uint8 (n, 3, S, S), for extractors that learn constants."""
    chosen = np.arange(0, index.samples, math.ceil(index.samples / count))
    return torch.cat([batch.images for batch in central(index, decoder, chosen)])


def extract(
    index: ShardIndex,
    extractor: Callable[[torch.Tensor], NDArray[np.float32]],
    decoder: Decoder,
    label: str | None = None,
    sample_ids: NDArray[np.int64] | None = None,
    world: World | None = None,
) -> NDArray[np.float32]:
    """Features of these samples, or of all in row order, float32 (N, D), on every rank.

    The ranks of `world` share the work. `extractor` maps uint8 images (B, 3, S, S) to (B, D). With a
    `label` rank 0 shows a progress bar.
    """
    world = world or World()
    sample_ids = np.arange(index.samples) if sample_ids is None else sample_ids
    # Whole batches: which images are computed together, and so every bit, is the same for any number of ranks.
    batches = math.ceil(len(sample_ids) / BATCH)
    first, last = (BATCH * (number * batches // world.size) for number in (world.rank, world.rank + 1))
    share = sample_ids[first:last]
    found = []
    with image_bar(label or "", len(share), shown=world.rank == 0 and label is not None) as advance:
        # A rank without a share takes one image all the same, and learns how wide features are.
        for batch in central(index, decoder, share if len(share) else sample_ids[:1]):
            found.append(torch.from_numpy(extractor(batch.images)))
            advance(len(found[-1]))
    return gather_rows(torch.cat(found)[: len(share)]).numpy()


def central(index: ShardIndex, decoder: Decoder, sample_ids: NDArray[np.int64]) -> Stream:
    """Batches of central crops of these samples, in this order."""
    return Stream(
        InOrder(sample_ids),
        index,
        decoder,
        central_crops,
        seed=0,  # nothing here is random
        batch_size=BATCH,
        micro_batch_size=BATCH,
        prefetch=4,
        device="cuda" if torch.cuda.is_available() else "cpu",
    )
