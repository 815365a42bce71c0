"""Features of a whole split: central crops of all its images, in order, through an extractor."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from mimcl.cli.console import console, image_bar
from mimcl.cli.encoders.feature_store import RowParts
from mimcl.model.distributed import World, gather_rows
from mimcl.pipeline.augment import central_crops
from mimcl.pipeline.batch_shares import BatchShares
from mimcl.pipeline.cores import decode_threads
from mimcl.pipeline.decode import Decoder
from mimcl.pipeline.decoder_choice import make_decoder
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
    decoder, choice = make_decoder(name, image_size, BATCH, decode_threads(world.local_size), largest)
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


def fill(
    index: ShardIndex,
    stores: Sequence[RowParts],
    extractors: Sequence[Callable[[torch.Tensor], NDArray[np.float32]]],
    decoder: Decoder,
    parts: Iterable[int],
    label: str | None = None,
) -> None:
    """Computes and stores those of the parts that are not there, decoding each image once for all extractors.

    The stores have the same parts. Batches are cut within a part: which images are computed together, and so every
    bit, depends on nothing else. With a `label` there is a progress bar.
    """
    ranges = stores[0].parts
    missing = {part: [store.read(part) is None for store in stores] for part in parts}
    missing = {part: lacking for part, lacking in missing.items() if any(lacking)}
    if not missing:
        return
    rows = [_whole_batches(ranges[part], last=part == len(ranges) - 1) for part in missing]
    batches = iter(central(index, decoder, np.concatenate(rows)))
    with image_bar(label or "", sum(len(ranges[part]) for part in missing), shown=label is not None) as advance:
        for part, lacking in missing.items():
            made: list[NDArray[np.float32] | None] = [None] * len(stores)
            for first in range(0, len(ranges[part]), BATCH):
                images = next(batches).images
                count = min(BATCH, len(ranges[part]) - first)
                for number, extractor in enumerate(extractors):
                    if lacking[number]:
                        features = extractor(images)[:count]
                        if made[number] is None:
                            made[number] = np.empty((len(ranges[part]), features.shape[1]), np.float32)
                        made[number][first : first + count] = features
                advance(count)
            for store, features in zip(stores, made, strict=True):
                if features is not None:
                    store.write(part, features)


def _whole_batches(rows: range, last: bool) -> NDArray[np.int64]:
    """The rows, and the last of them again until a batch is full: parts that follow begin with one of their own."""
    sample_ids = np.arange(rows.start, rows.stop)
    return sample_ids if last else np.pad(sample_ids, (0, -len(rows) % BATCH), mode="edge")


def central(index: ShardIndex, decoder: Decoder, sample_ids: NDArray[np.int64]) -> Stream:
    """Batches of central crops of these samples, in this order."""
    return Stream(
        InOrder(sample_ids),
        index,
        decoder,
        central_crops,
        BatchShares(BATCH, BATCH),
        seed=0,  # nothing here is random
        device="cuda" if torch.cuda.is_available() else "cpu",
    )
