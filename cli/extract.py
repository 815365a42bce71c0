"""Features of a whole split: central crops of all its images, in order, through an extractor."""

from __future__ import annotations

import math
import os
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from mimcl.cli.console import console, image_bar
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
    return torch.cat([batch.images for batch in _stream(index, decoder, math.ceil(index.samples / count))])


def extract(
    index: ShardIndex, extractor: Callable[[torch.Tensor], NDArray[np.float32]], decoder: Decoder, label: str
) -> NDArray[np.float32]:
    """Features of all samples in row order, float32 (N, D), with a progress bar called `label`.

    `extractor` maps uint8 images (B, 3, S, S) to (B, D).
    """
    features = None
    with image_bar(label, index.samples) as advance:
        for batch in _stream(index, decoder):
            found = extractor(batch.images)
            if features is None:
                features = np.empty((index.samples, found.shape[1]), np.float32)
            features[batch.sample_ids] = found
            advance(len(found))
    return features


def _stream(index: ShardIndex, decoder: Decoder, stride: int = 1) -> Stream:
    return Stream(
        InOrder(np.arange(0, index.samples, stride)),
        index,
        decoder,
        central_crops,
        seed=0,  # nothing here is random
        batch_size=_BATCH,
        micro_batch_size=_BATCH,
        prefetch=4,
        device="cuda" if torch.cuda.is_available() else "cpu",
    )
