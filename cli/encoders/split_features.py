"""Extract the features of a split's images in row order: of their central crops, or of random crops of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from mimcl.cli.bars import image_bar
from mimcl.cli.console import console
from mimcl.cli.encoders.bad_images import BadImages, mark
from mimcl.cli.encoders.feature_store import BATCH, ChunkedArray
from mimcl.cli.suggest import list_damage
from mimcl.model.distributed import gather_rows
from mimcl.model.world import World
from mimcl.pipeline.augment import Transform, central_crops, random_views
from mimcl.pipeline.batch_shares import BatchShares
from mimcl.pipeline.cores import decode_threads
from mimcl.pipeline.decode import Decoder
from mimcl.pipeline.decoder_choice import make_decoder
from mimcl.pipeline.files import DataError
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.plan import InOrderPlan
from mimcl.pipeline.stream import Batch, ReadOptions, Stream


def open_decoder(
    name: str, image_size: int, *splits: ShardIndex, world: World | None = None, views: int = 1
) -> Decoder:
    """Open the named decoder for crops of `image_size` pixels; rank 0 prints which decoder was chosen and why.

    It decodes up to `views` random crops of an image. The processes on a machine share its cores. Raises DataError.
    """
    world = world or World()
    largest = max(split.largest for split in splits)
    decoder, choice = make_decoder(name, image_size, max(BATCH, views), decode_threads(world.local_size), largest)
    if world.rank == 0:
        console.print(choice)
    return decoder


def sample_images(index: ShardIndex, decoder: Decoder, count: int, bad: BadImages) -> torch.Tensor:
    """Decode at most `count` images spread evenly over the split, uint8 (n, 3, S, S), to fit an extractor on.

    Bad images are skipped. Raises DataError if all are bad.
    """
    chosen = np.arange(0, index.samples, math.ceil(index.samples / count))
    images = [batch.images for batch in bad.without(central_crop_stream(index, decoder, chosen))]
    if not images:
        raise DataError(f"all images tried in {index.shown} are bad; {list_damage(index.shown)}")
    return torch.cat(images)


def extract(
    index: ShardIndex,
    extractor: Callable[[torch.Tensor], NDArray[np.float32]],
    decoder: Decoder,
    label: str | None = None,
    sample_ids: NDArray[np.int64] | None = None,
    world: World | None = None,
    bad: BadImages | None = None,
    views: int = 0,
) -> NDArray[np.float32]:
    """Extract the features of these samples, by default all in row order: float32 (N, D), on every rank.

    The ranks of `world` share the work. `extractor` maps uint8 images (B, 3, S, S) to features (B, D). With a `label`
    rank 0 shows a progress bar. Features of bad images are marked, see `is_bad`; `bad` knows which were reported.
    With `views` (at least 2) they are those of random crops, (N, views * D); see `view_stream`.
    """
    world, bad = world or World(), bad or BadImages(index)
    sample_ids = np.arange(index.samples) if sample_ids is None else sample_ids
    # Ranks take whole batches: results are bitwise the same for any number of ranks.
    size, measure = _batch_size(views), on_images(extractor, views)
    batches = math.ceil(len(sample_ids) / size)
    first, last = (size * (number * batches // world.size) for number in (world.rank, world.rank + 1))
    share = sample_ids[first:last]
    features = []
    with image_bar(label or "", len(share), shown=world.rank == 0 and label is not None) as advance:
        # A rank without a share extracts one image all the same, to know the feature width.
        for batch in _stream(index, decoder, share if len(share) else sample_ids[:1], views):
            features.append(torch.from_numpy(mark(measure(batch), bad.places(batch))))
            advance(len(features[-1]))
    return gather_rows(torch.cat(features)[: len(share)]).numpy()


def fill(
    index: ShardIndex,
    stores: Sequence[ChunkedArray],
    measures: Sequence[Callable[[Batch], NDArray[np.float32]]],
    decoder: Decoder,
    chunks: Iterable[int],
    label: str | None = None,
    bad: BadImages | None = None,
    sample_ids: NDArray[np.int64] | None = None,
    views: int = 0,
) -> None:
    """Compute and store the missing ones of these chunks, decoding each image once for all stores.

    `measures` map a batch to the rows (B, D) of each store, for example `on_images(extractor)`. All stores have the
    same chunks. Batches never cross a chunk, so results do not depend on which chunks are missing. With a `label` there
    is a progress bar. Features of bad images are marked, see `is_bad`; too many are a DataError. The rows are those of
    `sample_ids`, by default all samples; with `views` (at least 2) batches have random crops, see `view_stream`.
    """
    bad = bad or BadImages(index)
    sample_ids = np.arange(index.samples) if sample_ids is None else sample_ids
    size = _batch_size(views)
    rows = stores[0].chunks
    missing = {chunk: [n for n, store in enumerate(stores) if store.read(chunk) is None] for chunk in chunks}
    missing = {chunk: numbers for chunk, numbers in missing.items() if numbers}
    if not missing:
        return
    places = [_whole_batches(rows[chunk], size, last=chunk == len(rows) - 1) for chunk in missing]
    batches = iter(_stream(index, decoder, sample_ids[np.concatenate(places)], views))
    with image_bar(label or "", sum(len(rows[chunk]) for chunk in missing), shown=label is not None) as advance:
        for chunk, numbers in missing.items():
            features: dict[int, list[NDArray[np.float32]]] = {number: [] for number in numbers}
            for first in range(0, len(rows[chunk]), size):
                batch = next(batches)
                bad_places, count = bad.places(batch), min(size, len(rows[chunk]) - first)
                for number in numbers:
                    features[number].append(mark(measures[number](batch), bad_places)[:count])
                advance(count)
            for number in numbers:
                stores[number].write(chunk, np.concatenate(features[number]))


def on_images(
    extractor: Callable[[torch.Tensor], NDArray[np.float32]], views: int = 0
) -> Callable[[Batch], NDArray[np.float32]]:
    """Return the features of a batch's images as a measure, see `fill`; those of an image's views in one row."""

    def measure(batch: Batch) -> NDArray[np.float32]:
        features = extractor(batch.images)
        if not views:
            return features
        return features.reshape(views, -1, features.shape[1]).swapaxes(0, 1).reshape(len(batch.draws), -1)

    return measure


def _batch_size(views: int) -> int:
    """The number of images in a batch, so that it has at most BATCH crops: a power of two, as windows need."""
    return 1 << (max(1, BATCH // max(1, views)).bit_length() - 1)


def _whole_batches(rows: range, size: int, last: bool) -> NDArray[np.int64]:
    """The rows, padded with the last one to whole batches, so that the next chunk starts with a batch of its own."""
    places = np.arange(rows.start, rows.stop)
    return places if last else np.pad(places, (0, -len(rows) % size), mode="edge")


def _stream(index: ShardIndex, decoder: Decoder, sample_ids: NDArray[np.int64], views: int) -> Stream:
    return view_stream(index, decoder, sample_ids, views) if views else central_crop_stream(index, decoder, sample_ids)


def central_crop_stream(index: ShardIndex, decoder: Decoder, sample_ids: NDArray[np.int64]) -> Stream:
    """Stream the central crops of these samples, in this order; those of bad samples are black."""
    return _in_order(index, decoder, sample_ids, central_crops, BATCH)


def view_stream(index: ShardIndex, decoder: Decoder, sample_ids: NDArray[np.int64], views: int) -> Stream:
    """Stream `views` crops of each of these samples: all first views of a batch, then all second ones, and so on.

    They are the random crops and flips of pre-training, and depend on the sample and the number of the view alone.
    """
    crops = random_views(0, views)
    return _in_order(
        index, decoder, sample_ids, lambda draws, *sizes: crops(sample_ids[draws], *sizes), _batch_size(views)
    )


def _in_order(
    index: ShardIndex, decoder: Decoder, sample_ids: NDArray[np.int64], transform: Transform, batch_size: int
) -> Stream:
    return Stream(
        InOrderPlan(sample_ids),
        index,
        decoder,
        transform,
        BatchShares(batch_size, batch_size),
        ReadOptions(keep_bad=True),
        seed=0,  # of mask noise, which nothing uses
        device="cuda" if torch.cuda.is_available() else "cpu",
    )
