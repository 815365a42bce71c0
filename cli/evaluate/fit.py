"""What fine-tuning and MAE's linear probe share: labels, streams, a folder to go on from, the result."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
import xxhash
from numpy.typing import NDArray
from torch import Tensor, nn

from mimcl.cli.config import usage_errors
from mimcl.cli.console import console, last_words, training_bar, warn
from mimcl.cli.encoder import Encoder
from mimcl.cli.evaluate.fit_record import FitRecord
from mimcl.cli.evaluate.labelled import Labelled
from mimcl.cli.evaluate.results import Result, record
from mimcl.cli.memory import keep_freed_memory
from mimcl.cli.run import claimed
from mimcl.cli.stop import StopSignals
from mimcl.cli.train import STOPPED
from mimcl.curriculum.config import CurriculumConfig
from mimcl.curriculum.sampler import Plan
from mimcl.model import checkpoint
from mimcl.model.distributed import World, agree, barrier, connected, from_first
from mimcl.model.evaluate.augment import sent
from mimcl.model.evaluate.supervised import Supervised, accuracies
from mimcl.model.metrics import Outcome
from mimcl.pipeline.augment import central_crops, hash64, random_crops
from mimcl.pipeline.decode import Decoder, make_decoder
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.plan import Among, InOrder
from mimcl.pipeline.stream import Batch, Stream, micro_batches

_PATIENCE = 600.0  # seconds that a process waits for data, or for another process
_VAL_BATCH = 64


class Stopped(typer.TyperException):
    """An evaluation was asked to stop, and saved."""

    exit_code = STOPPED


@dataclass(frozen=True)
class Task:
    """An encoder, and labelled images to judge it by. Classes are those of the train images."""

    encoder: Encoder
    splits: Labelled
    labels: NDArray[np.int32]  # of the classes, ascending
    device: torch.device
    world: World

    @classmethod
    def load(cls, path: Path, data: Path | None, world: World) -> Task:
        """`data` None: the shards that the encoder was trained on. Raises CheckpointError and DataError."""
        encoder = Encoder.load(path)
        splits = Labelled.load(Path(encoder.config.data.root) if data is None else data)
        labels = np.unique(splits.train.label[splits.train.label >= 0])
        return cls(encoder, splits, labels, world.device(), world)

    @property
    def images(self) -> int:
        """Train images with a label."""
        return self.splits.counts[0]

    def targets(self, labels: NDArray[np.int32]) -> Tensor:
        """Labels (n,) as places among the classes, int64 on the device; -1 where train has no image of that class."""
        places = np.searchsorted(self.labels, labels).clip(max=len(self.labels) - 1)
        return sent(np.where(self.labels[places] == labels, places, -1), self.device)

    def digest(self, settings: Mapping[str, Any]) -> str:
        """Of all that an evaluation depends on: encoder, data, settings."""
        digest = xxhash.xxh128(json.dumps(settings, sort_keys=True).encode())
        for index in (self.splits.train, self.splits.val):
            digest.update(index.fingerprint.encode())
        for name, tensor in sorted(self.encoder.tensors.items()):
            digest.update(name.encode())
            digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()


@dataclass(frozen=True)
class Learner:
    """What is trained and how: losses (n,) and logits (n, C) of batches, the learning rate at a draw."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    losses: Callable[[Batch], Tensor]
    logits: Callable[[Batch], Tensor]
    rate: Callable[[int], float]
    repaint: Callable[[Tensor, NDArray[np.int64]], Tensor] | None = None


@dataclass(frozen=True)
class Course:
    """How long and in what portions a learner is trained, in draws; how often, in epochs, it is judged meanwhile."""

    draws: int
    batch_size: int
    micro_batch_size: int
    group_size: int
    seed: int
    smallest_crop: float
    judge_every_epochs: float

    @classmethod
    def of(cls, config: Any, images: int, world: World, micro_batch_size: int, group_size: int = 1) -> Course:
        """That of an evaluation's configuration; raises ConfigError where its batch cannot be cut so."""
        steps = max(1, math.ceil(round(config.epochs * images, 6) / config.batch_size))
        with usage_errors():
            micro_batches(config.batch_size, micro_batch_size, world.rank, world.size, group_size)
        return cls(
            steps * config.batch_size,
            config.batch_size,
            micro_batch_size,
            group_size,
            config.seed,
            config.smallest_crop,
            config.judge_every_epochs,
        )

    @staticmethod
    def settings_of(config: Any) -> dict[str, Any]:
        """The configuration's values by name, without what no result depends on."""
        return {name: value for name, value in asdict(config).items() if name != "judge_every_epochs"}


def fit(
    evaluation: str,
    task: Task,
    course: Course,
    settings: dict[str, Any],
    decoder: str,
    make_learner: Callable[[], Learner],
) -> Result:
    """Trains a learner on the train images with a label and judges it by the val images; all ranks do the same.

    What is needed to go on lies in `encoder.home`/evaluation/EVALUATION/DIGEST; other settings have other folders.
    Raises Stopped, saved, after SIGTERM or Ctrl-C.
    """
    world, device = task.world, task.device
    digest = task.digest(settings)
    folder = task.encoder.home / "evaluation" / evaluation / digest[:12]
    first = world.rank == 0
    with ExitStack() as until_done:
        if first:
            until_done.enter_context(claimed(folder))
        until_done.enter_context(connected(world, device, _PATIENCE + 60))
        agree("the evaluation", digest)
        values = FitRecord.values(folder) if first else None
        if from_first(values is not None):
            values = FitRecord.values(folder)
            if first:
                console.print(f"{folder} has the result already; remove the folder to compute it again")
        else:
            keep_freed_memory()
            values = _trained(evaluation, task, course, settings, decoder, make_learner(), folder)
    named = {evaluation if name == "top1" else f"{evaluation}_{name}": value for name, value in values.items()}
    splits = task.splits
    result = Result(
        evaluation, task.encoder.path, splits.train.root, *splits.counts, splits.classes, settings, trained=named
    )
    if first:
        record(task.encoder, result, splits.val)
    return result


def _trained(
    evaluation: str,
    task: Task,
    course: Course,
    settings: dict[str, Any],
    decoder_name: str,
    learner: Learner,
    folder: Path,
) -> dict[str, float]:
    """Values by name, top1 and top5, on every rank."""
    world, device, first = task.world, task.device, task.world.rank == 0
    parts = micro_batches(course.batch_size, course.micro_batch_size, world.rank, world.size, course.group_size)
    training = Supervised(
        learner.module,
        learner.optimizer,
        learner.losses,
        learner.rate,
        batch_size=course.batch_size,
        micro_batches=len(parts),
        draws=course.draws,
        world_size=world.size,
    )
    _take_up(training, folder / "checkpoints", first)
    decoder, choice = _decoder(decoder_name, task, task.splits.train, max(stop - start for start, stop in parts))
    for_val, _ = _decoder(decoder.name, task, task.splits.val, _VAL_BATCH)
    if first:
        console.print(choice)
        if training.position:
            console.print(f"going on at step {training.position // course.batch_size} in {folder}")
    stream = _stream(task, course, decoder, learner.repaint, training.position)
    judged_every = max(1, round(course.judge_every_epochs * task.images / course.batch_size))  # steps
    steps = course.draws // course.batch_size
    with ExitStack() as until_done:
        signals = until_done.enter_context(StopSignals(last_words))
        kept: FitRecord | None = None
        if first:
            show = until_done.enter_context(training_bar(training.position // course.batch_size, steps))
            kept = until_done.enter_context(closing(FitRecord(folder, settings, training, course.batch_size, show)))

        def judged() -> dict[str, float]:
            learner.module.eval()
            batches = _val(task, for_val, signals)
            return dict(accuracies(learner.logits, batches, lambda batch: task.targets(batch.labels), device))

        def after_step(step: int, outcomes: list[Outcome]) -> None:
            signals.step_done()
            if kept:
                kept.after_step(step, outcomes, last=step == steps)
            if step % judged_every == 0 and step < steps and not any(outcome.stop for outcome in outcomes):
                values = judged()
                if kept:
                    kept.judged(step, values)

        due = lambda step: step % judged_every == 0 or FitRecord.saves(step)  # noqa: E731
        ended = training.run(_told(stream), after_step, lambda: signals.requested, due)
        signals.be_patient()
        if kept:
            kept.save()
        if not ended:
            barrier()  # torchrun ends all of them when one leaves early
            if not first:
                raise typer.Exit(STOPPED)
            raise Stopped(f"stopped and saved in {folder}; the same command goes on")
        values = judged()
        if kept:
            kept.finish(values)
    return values


def _take_up(training: Supervised, checkpoints: Path, first: bool) -> None:
    """Puts `training` where the newest whole checkpoint was saved, if there is one; all ranks take rank 0's."""
    saved = None
    if first and checkpoint.candidates(checkpoints):
        saved = checkpoint.newest(checkpoints, checkpoint.load, warn)
    step = from_first(int(saved.path.name) if saved else 0)
    if step:
        saved = saved or checkpoint.load(checkpoints / f"{step:08d}")
        training.load(saved.tensors, saved.state)


def _decoder(name: str, task: Task, index: ShardIndex, images: int) -> tuple[Decoder, str]:
    threads = max(1, (os.cpu_count() or 1) // task.world.local_size)
    return make_decoder(name, task.encoder.config.data.image_size, images, threads, index.largest)


def _stream(
    task: Task,
    course: Course,
    decoder: Decoder,
    repaint: Callable[[Tensor, NDArray[np.int64]], Tensor] | None,
    start: int,
) -> Stream:
    """Every train image with a label once a pass, in keyed order."""
    labelled = np.flatnonzero(task.splits.train.label >= 0)
    plan = Plan(
        CurriculumConfig(name="none"),
        samples=len(labelled),
        distances=None,
        draws=course.draws,
        batch_size=course.batch_size,
        seed=course.seed,
        hash64=hash64,
    )
    return Stream(
        Among(plan, labelled),
        task.splits.train,
        decoder,
        random_crops(course.seed, (course.smallest_crop, 1.0)),
        seed=course.seed,
        batch_size=course.batch_size,
        micro_batch_size=course.micro_batch_size,
        prefetch=4,
        start=start,
        rank=task.world.rank,
        world_size=task.world.size,
        group_size=course.group_size,
        device=task.device,
        stall_timeout=_PATIENCE,
        repaint=repaint,
    )


def _val(task: Task, decoder: Decoder, signals: StopSignals) -> Iterator[Batch]:
    """This rank's share of the val images with a label, as central crops."""
    index, world = task.splits.val, task.world
    labelled = np.flatnonzero(index.label >= 0)
    share = labelled[world.rank * len(labelled) // world.size : (world.rank + 1) * len(labelled) // world.size]
    stream = Stream(
        InOrder(share),
        index,
        decoder,
        central_crops,
        seed=0,  # nothing here is random
        batch_size=_VAL_BATCH,
        micro_batch_size=_VAL_BATCH,
        prefetch=4,
        device=task.device,
        stall_timeout=_PATIENCE,
    )
    for batch in stream:
        yield batch
        signals.step_done()


def _told(stream: Stream) -> Iterator[Batch]:
    """The same batches; bad samples, whose place others took, are told."""
    for batch in stream:
        for bad in batch.bad:
            warn(f"sample {bad.key} in {bad.shard} is bad ({bad.reason}); another was drawn in its place")
        yield batch
