"""What training with labels needs: the encoder, the images, the batches, the learner."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor, nn

from mimcl.cli.console import console
from mimcl.cli.encoders.encoder import Encoder
from mimcl.cli.encoders.split_features import central_crop_stream
from mimcl.cli.errors import ConfigError
from mimcl.cli.evaluate.labelled import LabelledSplits
from mimcl.cli.plan.build_plan import build_plan
from mimcl.curriculum.config import CurriculumConfig
from mimcl.model.digest import weights_digest
from mimcl.model.evaluate.augment import to_device
from mimcl.model.world import World
from mimcl.pipeline.augment import random_crops
from mimcl.pipeline.batch_shares import BatchShares
from mimcl.pipeline.cores import decode_threads
from mimcl.pipeline.decode import Decoder
from mimcl.pipeline.decoder_choice import make_decoder
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.plan import SubsetPlan
from mimcl.pipeline.stream import Batch, ReadOptions, Stream

TIMEOUT_S = 600.0  # that a process waits for data, or for another process


@dataclass(frozen=True)
class Task:
    """An encoder, and the labelled images to evaluate it with. Classes are those of the train images."""

    encoder: Encoder
    splits: LabelledSplits
    labels: NDArray[np.int32]  # of the classes, ascending
    device: torch.device
    world: World

    @classmethod
    def load(cls, path: Path, data: str | Path | None, world: World) -> Task:
        """Load an encoder and its data; `data` None is what it was trained on. Raises CheckpointError and DataError."""
        encoder = Encoder.load(path)
        if encoder.note and world.rank == 0:
            console.print(encoder.note)
        splits = LabelledSplits.load(encoder.config.data.root if data is None else data)
        if splits.note and world.rank == 0:
            console.print(splits.note)
        labels = np.unique(splits.train.label[splits.train.label >= 0])
        return cls(encoder, splits, labels, world.device(), world)

    @property
    def images(self) -> int:
        """The number of train images with a label."""
        return self.splits.counts[0]

    @property
    def class_names(self) -> list[str]:
        """The names of the classes, in the order of the logits; their numbers if the shards have no names."""
        names = self.splits.train.classes
        return [names[label] if names else str(label) for label in self.labels.tolist()]

    def targets(self, labels: NDArray[np.int32]) -> Tensor:
        """Return labels (n,) as class numbers, int64 on the device; -1 where train has no image of that class."""
        places = np.searchsorted(self.labels, labels).clip(max=len(self.labels) - 1)
        return to_device(np.where(self.labels[places] == labels, places, -1), self.device)

    def digest(self, settings: Mapping[str, Any]) -> str:
        """Return a hash of everything an evaluation depends on: encoder, data and settings."""
        digest = xxhash.xxh128(json.dumps(settings, sort_keys=True).encode())
        for index in (self.splits.train, self.splits.val):
            digest.update(index.fingerprint.encode())
        if self.splits.unseen:
            digest.update(b"val images of unseen classes left out")  # once they counted as wrong
        digest.update(weights_digest(self.encoder.tensors).encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class Learner:
    """A module to train: losses (n,) and logits (n, C) of batches, and the learning rate at a draw."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    losses: Callable[[Batch], Tensor]
    logits: Callable[[Batch], Tensor]
    rate: Callable[[int], float]
    augment_batch: Callable[[Tensor, NDArray[np.int64]], Tensor] | None = None


@dataclass(frozen=True)
class Course:
    """The length of a training in draws, its batches, and how often, in epochs, it is evaluated on the way."""

    draws: int
    shares: BatchShares
    seed: int
    smallest_crop: float
    judge_every_epochs: float

    @property
    def batch_size(self) -> int:
        return self.shares.batch_size

    @classmethod
    def of(cls, config: Any, images: int, world: World, micro_batch_size: int, group_size: int = 1) -> Course:
        """Return the course of a configuration. Raises ConfigError where its batch cannot be divided."""
        steps = max(1, math.ceil(round(config.epochs * images, 6) / config.batch_size))
        try:
            shares = BatchShares(config.batch_size, micro_batch_size, world.rank, world.size, group_size=group_size)
        except ValueError:  # its message names keys of pre-training
            raise ConfigError(_indivisible(config.batch_size, micro_batch_size, group_size, world.size)) from None
        return cls(
            steps * config.batch_size,
            shares,
            config.seed,
            config.smallest_crop,
            config.judge_every_epochs,
        )

    @staticmethod
    def settings_of(config: Any) -> dict[str, Any]:
        """Return the configuration's values by name, without those that change no result."""
        return {name: value for name, value in asdict(config).items() if name != "judge_every_epochs"}


def _indivisible(batch_size: int, micro_batch_size: int, group_size: int, processes: int) -> str:
    """Say why a batch cannot be divided among so many processes, and what to do."""
    if processes > batch_size:
        return f"batch_size {batch_size} is smaller than the {processes} processes; raise it, or use fewer processes"
    if processes > batch_size // group_size:
        return (
            f"batch_size {batch_size} has fewer groups of {group_size} images (mixing_group) than the {processes} "
            f"processes; raise it, or make the groups smaller: --set mixing_group={batch_size // processes}"
        )
    return (
        f"--micro-batch-size {micro_batch_size} cannot divide a batch of {batch_size} images evenly among {processes} "
        f"processes; make it {2 * group_size} or more"
    )


def decoder_of(name: str, task: Task, index: ShardIndex, images: int) -> tuple[Decoder, str]:
    """Return the decoder for crops of the encoder's size, and a line that names it; batches have up to `images`."""
    threads = decode_threads(task.world.local_size)
    return make_decoder(name, task.encoder.config.data.image_size, images, threads, index.largest)


def train_batches(
    task: Task,
    course: Course,
    decoder: Decoder,
    augment_batch: Callable[[Tensor, NDArray[np.int64]], Tensor] | None,
    start: int,
) -> Stream:
    """Return batches that have every labelled train image once a pass, in keyed order."""
    labelled = np.flatnonzero(task.splits.train.label >= 0)
    plan = build_plan(
        CurriculumConfig(name="none"),
        samples=len(labelled),
        draws=course.draws,
        batch_size=course.batch_size,
        seed=course.seed,
    )
    return Stream(
        SubsetPlan(plan, labelled),
        task.splits.train,
        decoder,
        random_crops(course.seed, (course.smallest_crop, 1.0)),
        course.shares,
        ReadOptions(stall_timeout=TIMEOUT_S),
        seed=course.seed,
        start=start,
        device=task.device,
        augment_batch=augment_batch,
    )


def val_batches(task: Task, decoder: Decoder) -> Stream:
    """Return this rank's share of the val images that have a class of train, as central crops."""
    index, world = task.splits.val, task.world
    labelled = np.flatnonzero(task.splits.val_labels >= 0)
    share = labelled[world.rank * len(labelled) // world.size : (world.rank + 1) * len(labelled) // world.size]
    return central_crop_stream(index, decoder, share)
