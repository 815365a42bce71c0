"""The stream of batches for any training loop: drawn by a curriculum, exactly resumable, on any number of processes."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any, get_args
from weakref import ref

import torch
from numpy.typing import ArrayLike, NDArray

from mimcl.api.given_arrays import ids_of, numbers
from mimcl.api.loader_batch import BatchConversion, BatchTransform, LoaderBatch
from mimcl.api.loader_plan import ENDLESS, Progress, plan_loader
from mimcl.api.loader_state import FORMAT, digest_of, require_same
from mimcl.api.same_on_all import same_on_all
from mimcl.cli.console import warn
from mimcl.cli.errors import ConfigError, usage_errors
from mimcl.cli.run.requests import keeps_whole_shards
from mimcl.curriculum.config import CurriculumConfig
from mimcl.curriculum.moving_scores import MovingScores
from mimcl.curriculum.resolution import resolution
from mimcl.model.distributed import agree, current_world
from mimcl.pipeline.augment import random_views
from mimcl.pipeline.batch_shares import BatchShares
from mimcl.pipeline.cores import decode_threads
from mimcl.pipeline.dali_builds import has_dali, how_to_install
from mimcl.pipeline.data_config import DataConfig, DecoderName, bad_allowed
from mimcl.pipeline.decode import Decoder
from mimcl.pipeline.decoder_choice import make_decoder
from mimcl.pipeline.files import DataError
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.kept_pixels import KeptPixels, require_room
from mimcl.pipeline.stream import Batch, ReadOptions, Stream

_PARTS = {"draw", "depends_on", "scores"}  # of a state


class Loader:
    """Iterates over the batches of packed shards, from where it is to the end of the run.

    What a draw is (its image, crop, flip and keys) depends on its number, the seed and the curriculum alone, and not on
    processes or what was made ahead. So a run that continues from `state_dict()`, on another number of processes as
    well, gets exactly the draws it would have got. Leaving a loop and iterating again continues it.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        batch_size: int,
        image_size: int = 224,
        epochs: float | None = None,
        curriculum: str | CurriculumConfig | None = None,
        schedule: str | Progress | None = None,
        temperature: float | Progress | None = None,
        scores: ArrayLike | None = None,
        seed: int = 0,
        views: int = 1,
        transform: BatchTransform | None = None,
        normalize: bool = False,
        decoder: DecoderName = "auto",
        keep_decoded: bool = False,
        device: torch.device | str | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        prefetch: int = DataConfig.prefetch,
        order: str = "auto",
        max_bad: float = DataConfig.max_bad,
    ) -> None:
        """Open the shards in a folder or at a URL.

        Args:
            root: Folder or URL of shards.
            batch_size: Draws of a step, over all processes.
            image_size: Side of the crops in pixels.
            epochs: Length of the run, over which the curriculum goes; None: endless, at constant temperature.
            curriculum: "none", "proto" (typical or easy images first; the default with `scores`), "anti" (hard ones),
                "subset" (random ones), or a `Curriculum` with all settings.
            schedule: Name of a schedule, or a function from the progress in [0, 1] to the effective fraction.
            temperature: Instead of a schedule: a number, or a function of the progress in [0, 1].
            scores: One finite number per image, (N,), higher = harder, instead of distances to prototypes;
                `update_scores` and `set_scores` change them.
            seed: Seed of everything random.
            views: Independent crops of each draw.
            transform: Function of a uint8 batch (n, 3, H, W) on the device, called for each view, with torch's
                generators seeded by the first draw: exact as long as the number of processes is the same.
            normalize: Whether to return float32 with ImageNet's mean and deviation, instead of uint8.
            decoder: Image decoder.
            keep_decoded: Whether to decode all images once, at the first iteration, and keep them on the device.
            device: Where the images go; None is this process's GPU, or the CPU.
            rank: This process's number; None is that of torch.distributed or torchrun.
            world_size: Number of processes; None as for `rank`.
            prefetch: Batches that are made ahead.
            order: Order of the draws in a window: "random", "shard", or "auto".
            max_bad: Share of the draws that may be bad images; 10 always may. Others of the window replace them.

        Raises:
            ConfigError: Values do not go together.
            DistributedError: Connected processes have different values.
            DataError: The shards cannot be read.
            PrototypeError: The prototype set is missing, or that of other data.
        """
        world = current_world()
        self._world_size = world.size if world_size is None else world_size
        self._rank = world.rank if rank is None else rank
        self._is_placed = rank is not None or world_size is not None
        if decoder not in (known := get_args(DecoderName)):
            raise ConfigError(f"decoder is {decoder!r}; choose one of {', '.join(known)}")
        for name, value in (("batch_size", batch_size), ("image_size", image_size), ("views", views)):
            if value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1")
        if not 0 <= self._rank < self._world_size:
            raise ConfigError(f"rank is {self._rank}; it must be from 0 to {self._world_size - 1}, below world_size")
        local_size = world.local_size if self._world_size > 1 else 1
        self._index = index = ShardIndex.load(root)
        with usage_errors():
            self._shares = BatchShares(batch_size, batch_size, self._rank, self._world_size, local_size)
            given = self._same("scores", None if scores is None else numbers(scores))
            planned = plan_loader(index, batch_size, seed, epochs, curriculum, schedule, temperature, given, order)
            text, draws = planned.plan.config.resolution, planned.plan.draws
            self._sides = resolution(text, image_size, 1, draws, batch_size)
        self._plan, self._scores, self._depends_on = planned.plan, planned.scores, planned.depends_on
        if self._world_size > 1:
            agree("what loaders draw", digest_of(self._depends_on))
        self._device = world.device() if device is None else torch.device(device)
        self._convert = BatchConversion(batch_size, seed, views, transform, normalize, self._device)
        self._options = ReadOptions(
            prefetch, planned.plan.config.order == "shard", whole_shards=keeps_whole_shards(planned.plan, index)
        )
        self._image_size, self._decoder_name, self._seed, self._views = image_size, decoder, seed, views
        self._keeps_decoded = keep_decoded
        self._decoder: Decoder | None = None  # made when it is needed
        self._iteration: ref[Generator[LoaderBatch, None, None]] | None = None  # the last one; a loop owns it
        self._max_bad, self._bad, self._position = max_bad, 0, 0

    def __len__(self) -> int:
        """The number of batches of the whole run. Raises TypeError if it is endless."""
        if self._plan.draws >= ENDLESS:
            raise TypeError("the loader is endless and has no length; give it epochs")
        return self._plan.draws // self._shares.batch_size

    @property
    def samples(self) -> int:
        """N, the number of images."""
        return self._index.samples

    @property
    def classes(self) -> list[str]:
        """The names of the classes, in the order of the labels."""
        return self._index.classes

    @property
    def device(self) -> torch.device:
        """Where the images are."""
        return self._device

    def __iter__(self) -> Generator[LoaderBatch, None, None]:
        """Yield the batches from the current position on, and end the iteration before, if there is one.

        Raises ConfigError if the processes were connected after the loader was made, DataError, and StallError if no
        batch arrives in time.
        """
        now = current_world()
        if not self._is_placed and (now.rank, now.size) != (self._rank, self._world_size):
            raise ConfigError(
                f"the loader was made for rank {self._rank} of {self._world_size}, but this is rank {now.rank} of "
                f"{now.size}; make it after the processes are connected (with Lightning, in train_dataloader)"
            )
        self._end_iteration()
        iteration = self._batches()
        self._iteration = ref(iteration)
        return iteration

    def _batches(self) -> Generator[LoaderBatch, None, None]:
        batches = iter(self._open_stream())
        try:
            while self._position < self._plan.draws:
                if self._scores:
                    self._scores.advance(self._position + self._shares.batch_size)
                batch = next(batches)
                self._position = batch.position
                self._count_bad(batch)
                yield self._convert(batch)
        finally:
            batches.close()

    def set_scores(self, scores: ArrayLike | None) -> None:
        """Replace all scores, (N,), from the window after the next one on.

        The processes give the same scores, or rank 0 gives them and the others None. Raises ConfigError for scores that
        the constructor refuses; then nothing changes.
        """
        moving = self._moving()
        with usage_errors():
            moving.set(self._given("scores", None if scores is None else numbers(scores)))

    def update_scores(self, sample_ids: ArrayLike | None, scores: ArrayLike | None) -> None:
        """Change the scores (n,) of some images (n,), from the window after the next one on.

        The processes give the same ids and scores, or rank 0 gives them and the others None. Raises ConfigError for
        unknown ids and scores that are not finite; then nothing changes.
        """
        moving = self._moving()
        with usage_errors():
            ids = self._given("sample_ids", None if sample_ids is None else ids_of(sample_ids))
            moving.update(ids, self._given("scores", None if scores is None else numbers(scores)))

    def state_dict(self) -> dict[str, Any]:
        """Return the state after the last batch that was yielded: its position, and scores that move.

        It has numbers, texts, lists and tensors only, so that torch.load(weights_only=True) reads it.
        """
        scores = self._scores.state_dict() if self._scores else None
        return {"format": FORMAT, "draw": self._position, "depends_on": dict(self._depends_on), "scores": scores}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state, at the next iteration; the number of processes may be another one.

        Raises ConfigError for a state of other data, seed, batch size, schedule or curriculum; then nothing changes.
        """
        if not isinstance(state, dict) or state.get("format") != FORMAT or not state.keys() >= _PARTS:
            raise ConfigError(f"this is not the state of a Loader (format {FORMAT!r})")
        require_same(state["depends_on"], self._depends_on)
        self._end_iteration()
        with usage_errors():
            if self._scores:
                self._scores.load_state_dict(state["scores"])
        self._position = state["draw"]

    def _end_iteration(self) -> None:
        if self._iteration is not None and (iteration := self._iteration()) is not None:
            iteration.close()

    def _open_stream(self) -> Stream:
        """The stream of this process's share of each batch, from the current position on."""
        if self._decoder is None:
            threads = decode_threads(self._shares.local_size, None)
            images = self._shares.longest * self._views
            if self._keeps_decoded:
                require_room(self._index, self._device, self._shares.local_size)
                self._decoder = KeptPixels(self._index, self._image_size, threads, self._device)
            else:
                name, largest = self._decoder_name, self._index.largest
                self._decoder, choice = make_decoder(name, self._image_size, images, threads, largest)
                if name == "auto" and current_world().rank == 0 and how_to_install() and not has_dali():
                    warn(choice)
        return Stream(
            self._plan,
            self._index,
            self._decoder,
            random_views(self._seed, self._views),
            self._shares,
            self._options,
            seed=self._seed,
            start=self._position,
            device=self._device,
            side_at=self._sides.side_at,
        )

    def _count_bad(self, batch: Batch) -> None:
        self._bad += len(batch.bad)
        for bad in batch.bad:
            warn(f"bad image {bad.key} in {bad.shard}: {bad.reason}; draw {bad.draw} gets another image")
        if self._bad > bad_allowed(self._max_bad, batch.position):
            last = batch.bad[-1]
            raise DataError(
                f"{self._bad} bad images in {batch.position:,} draws, the last one {last.key} in {last.shard}: "
                f"{last.reason}; pack the images again, or raise max_bad"
            )

    def _moving(self) -> MovingScores:
        if self._scores is None:
            raise ConfigError(
                "this loader has no scores to change; give it scores=, an array with one number per image"
            )
        return self._scores

    def _same(self, what: str, array: NDArray | None) -> NDArray | None:
        return same_on_all(what, array) if self._world_size > 1 else array

    def _given(self, what: str, array: NDArray | None) -> NDArray:
        if (same := self._same(what, array)) is None:
            raise ConfigError(f"{what} are None; give an array, with several processes on one of them at least")
        return same
