"""Sound samples for draws: a draw whose sample is bad gets the first of its substitutes that is not.

Whether a sample is bad depends on its bytes alone, and substitutes on seed and draw; so what a draw ends up with does
not depend on how draws are cut into micro-batches or shared among processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from mimcl.pipeline.augment import Transform
from mimcl.pipeline.decode import Decoded, Encoded, decode_one
from mimcl.pipeline.files import DataError
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.open_store import open_store
from mimcl.pipeline.plan import Plan, Window
from mimcl.pipeline.progress import Stage
from mimcl.pipeline.store import Defect


@dataclass(frozen=True)
class BadSample:
    """A sample that a draw could not have; each bad substitute is one more."""

    draw: int
    sample_id: int
    key: str
    shard: str  # file name
    reason: str


@dataclass
class Part:
    """A micro-batch of n draws in the making; samples and distances are those that the draws have by now."""

    window: Window
    draws: NDArray[np.int64]
    sample_ids: NDArray[np.int64]
    distances: NDArray[np.float32]
    bad: list[BadSample]


class Samples:
    """Reads the samples of micro-batches and, where one is bad, those that take its place."""

    def __init__(self, plan: Plan, index: ShardIndex, transform: Transform, stage: Stage) -> None:
        self._plan, self._index, self._transform, self._stage = plan, index, transform, stage
        self.store = open_store(index)

    def read(self, window: Window, draws: NDArray[np.int64]) -> tuple[Part, Encoded]:
        """The draws' images and boxes; bad only by what a decoder may find. Raises DataError after the last retry."""
        places = draws - window.first_draw
        part = Part(window, draws, window.sample_ids[places], window.distances[places], [])
        self._stage.words = self.store.reading
        data = [self._sound(part, place, found) for place, found in enumerate(self.store.read(part.sample_ids))]
        return part, Encoded(data, *self._boxes(part, slice(None)))

    def repair(self, part: Part, decoded: Decoded) -> None:
        """Puts a substitute's pixels where no decoder could read an image. Raises DataError after the last retry.

        Those substitutes are decoded by the reference, whatever the decoder.
        """
        images, failures = decoded
        for place, reason in failures:
            pixels: NDArray[np.uint8] | str = reason
            while isinstance(pixels, str):
                sample_id = int(part.sample_ids[place])
                data = self._sound(part, place, self.store.defect(sample_id, pixels))
                (box,), (flip,) = self._boxes(part, slice(place, place + 1))
                pixels = decode_one(data, box.tolist(), flip, images.shape[-1])
            images[place] = torch.tensor(pixels).permute(2, 0, 1).to(images.device)

    def _sound(self, part: Part, place: int, found: NDArray[np.uint8] | Defect) -> NDArray[np.uint8]:
        """The bytes in that place of `part`, of substitutes until one is read without a defect."""
        while isinstance(found, Defect):
            self._replace(part, place, found)
            (found,) = self.store.read(part.sample_ids[place : place + 1])
        return found

    def _replace(self, part: Part, place: int, defect: Defect) -> None:
        one = slice(place, place + 1)
        draw = int(part.draws[place])
        retry = sum(bad.draw == draw for bad in part.bad)
        part.bad.append(BadSample(draw, int(part.sample_ids[place]), *defect))
        if retry == self._plan.retries:
            also = f", as were the {retry} samples before it that draw {draw} had" if retry else ""
            raise DataError(
                f"sample {defect.key} in {self._index.at(defect.shard)} is bad{also}: {defect.reason}; "
                "restore the shard, or pack again with `mimcl shard --decode`"
            )
        self._stage.words = partial("planning window {}".format, part.window.number)
        part.sample_ids[one], part.distances[one] = self._plan.substitutes(part.window.number, part.draws[one], retry)
        self._stage.words = self.store.reading

    def _boxes(self, part: Part, which: slice) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        sample_ids = part.sample_ids[which]
        return self._transform(part.draws[which], self._index.width[sample_ids], self._index.height[sample_ids])
