"""Samples for draws: a draw whose sample is bad gets the first of its substitutes that is good, or a black image.

Whether a sample is bad depends on its bytes alone, and substitutes on seed and draw. So the sample that a draw finally
gets does not depend on how draws are divided into micro-batches or among processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from mimcl.pipeline.augment import Transform
from mimcl.pipeline.decode import Decoded, Encoded, decode_one, trial_batch
from mimcl.pipeline.files import DataError
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.open_store import open_store
from mimcl.pipeline.plan import Plan, Window
from mimcl.pipeline.progress import Progress
from mimcl.pipeline.store import Defect, Store, defect_of


@dataclass(frozen=True)
class BadSample:
    """A sample that was bad when a draw needed it; each bad substitute is another one."""

    draw: int
    sample_id: int
    key: str
    shard: str  # file name
    reason: str


@dataclass
class MicroBatch:
    """The n draws of a micro-batch, with their current samples and distances: substitutes replace them in place."""

    window: Window
    draws: NDArray[np.int64]
    sample_ids: NDArray[np.int64]
    distances: NDArray[np.float32]
    bad: list[BadSample]


_STAND_IN = trial_batch(1)  # decoded in the place of a sample without bytes that is kept


class SampleReader:
    """Reads the samples of micro-batches, and substitutes for bad ones; with `keep_bad` black images instead."""

    def __init__(
        self,
        plan: Plan,
        index: ShardIndex,
        transform: Transform,
        progress: Progress,
        whole_shards: bool = False,
        keep_bad: bool = False,
        scaled: bool = False,
        store: Store | None = None,
    ) -> None:
        """`store` None is that of the shards, to which `whole_shards` is passed; `scaled` is for substitutes."""
        self._plan, self._index, self._transform, self._progress = plan, index, transform, progress
        self._keep_bad, self._scaled = keep_bad, scaled
        self.store = store or open_store(index, whole_shards)

    def read(
        self, window: Window, draws: NDArray[np.int64], image_size: int | None = None
    ) -> tuple[MicroBatch, Encoded]:
        """Read the draws' images, with boxes; only a decoder can still find them bad.

        With several views each image is there once for each of them. `image_size` is passed to the decoder. Raises
        DataError if the last retry of a draw is bad.
        """
        places = draws - window.first_draw
        batch = MicroBatch(window, draws, window.sample_ids[places], window.distances[places], [])
        self._progress.activity = self.store.activity
        found = self.store.read(batch.sample_ids)
        images = [self._good_bytes(batch, place, data) for place, data in enumerate(found)]
        boxes, flips = self._boxes(batch, slice(None))
        for place, image in enumerate(images):
            if image is _STAND_IN.data[0]:
                boxes[place :: len(images)] = _STAND_IN.boxes[0]
        return batch, Encoded(images * (len(boxes) // len(images)), boxes, flips, image_size)

    def replace_undecodable(self, batch: MicroBatch, decoded: Decoded) -> None:
        """Put a substitute's pixels, in all views, wherever no decoder could decode an image.

        The reference decoder decodes the substitutes. Raises DataError if the last retry of a draw is bad.
        """
        images, draws = decoded.images, len(batch.draws)
        failures = {place % draws: reason for place, reason in reversed(decoded.failures)}  # of its first view
        if self._keep_bad:
            for place, reason in sorted(failures.items()):
                self._note(batch, place, defect_of(self._index, int(batch.sample_ids[place]), reason))
            for bad in batch.bad:
                images[bad.draw - int(batch.draws[0]) :: draws] = 0
            return
        for place, reason in sorted(failures.items()):
            while True:
                defect = defect_of(self._index, int(batch.sample_ids[place]), reason)
                data = self._good_bytes(batch, place, defect)
                boxes, flips = self._boxes(batch, slice(place, place + 1))
                views = [
                    decode_one(data, box.tolist(), flip, images.shape[-1], self._scaled)
                    for box, flip in zip(boxes, flips, strict=True)
                ]
                reasons = [view for view in views if isinstance(view, str)]
                if not reasons:
                    break
                reason = reasons[0]
            images[place::draws] = torch.tensor(np.stack(views)).permute(0, 3, 1, 2).to(images.device)

    def _good_bytes(self, batch: MicroBatch, place: int, found: NDArray[np.uint8] | Defect) -> NDArray[np.uint8]:
        """`found`, or the bytes of the first substitute in that place that is read without a defect, or a stand-in."""
        if self._keep_bad and isinstance(found, Defect):
            self._note(batch, place, found)
            return _STAND_IN.data[0]
        while isinstance(found, Defect):
            self._substitute(batch, place, found)
            (found,) = self.store.read(batch.sample_ids[place : place + 1])
        return found

    def _substitute(self, batch: MicroBatch, place: int, defect: Defect) -> None:
        """Record the bad sample in that place and put its draw's next substitute there."""
        one = slice(place, place + 1)
        draw = int(batch.draws[place])
        retry = sum(bad.draw == draw for bad in batch.bad)
        self._note(batch, place, defect)
        if retry == self._plan.retries:
            also = f", like {retry} other samples tried for draw {draw}" if retry else ""
            raise DataError(
                f"sample {defect.key} in {self._index.at(defect.shard)} is bad{also}: {defect.reason}; "
                "restore the shard, or pack the images again, with --decode"
            )
        number = batch.window.number
        self._progress.activity = partial("planning window {}".format, number)
        batch.sample_ids[one], batch.distances[one] = self._plan.substitutes(number, batch.draws[one], retry)
        self._progress.activity = self.store.activity

    def _note(self, batch: MicroBatch, place: int, defect: Defect) -> None:
        batch.bad.append(BadSample(int(batch.draws[place]), int(batch.sample_ids[place]), *defect))

    def _boxes(self, batch: MicroBatch, which: slice) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        sample_ids = batch.sample_ids[which]
        return self._transform(batch.draws[which], self._index.width[sample_ids], self._index.height[sample_ids])
