"""Training with labels from beginning to end: a folder to go on from, the training, the judgement, the result."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import typer

from mimcl.cli.console import console, training_bar, warn, warn_before_exit
from mimcl.cli.encoders.split_features import BATCH
from mimcl.cli.evaluate.fit_record import FitRecord, save_every
from mimcl.cli.evaluate.results import Result, record
from mimcl.cli.evaluate.task import PATIENCE, Course, Learner, Task, decoder_of, train_batches, val_batches
from mimcl.cli.run.folder import claimed
from mimcl.cli.run.malloc import keep_freed_memory
from mimcl.cli.run.signals import StopSignals
from mimcl.cli.train import STOPPED
from mimcl.model import checkpoint
from mimcl.model.distributed import agree, barrier, connected, from_first, gather
from mimcl.model.evaluate.supervised import Supervised, accuracies
from mimcl.model.metrics import Outcome
from mimcl.pipeline.stream import Batch, Stream


class Stopped(typer.TyperException):
    """An evaluation was asked to stop, and saved."""

    exit_code = STOPPED


def fit(
    evaluation: str,
    task: Task,
    course: Course,
    settings: dict[str, Any],
    decoder: str,
    make_learner: Callable[[], Learner],
) -> Result:
    """Trains a learner on the train images with a label and judges it by the val images; all ranks do the same.

    What is needed to go on lies in `encoder.home`/evaluation/EVALUATION/DIGEST; other settings have other folders. The
    weights stay there in the end, and no checkpoint.
    Raises Stopped, saved, after SIGTERM or Ctrl-C.
    """
    world, device = task.world, task.device
    digest = task.digest(settings)
    folder = task.encoder.home / "evaluation" / evaluation / digest[:12]
    first = world.rank == 0
    with ExitStack() as until_done:
        if first:
            until_done.enter_context(claimed(folder))
        until_done.enter_context(connected(world, device, PATIENCE + 60))
        agree("the evaluation", digest)
        # Rank 0's: the others may not see its disk.
        values = json.loads(gather(json.dumps(FitRecord.values(folder)) if first else "")[0])
        if values is not None:
            if first:
                console.print(f"{folder} has the result already; remove the folder to compute it again")
        else:
            keep_freed_memory()
            values = _trained(evaluation, task, course, settings, decoder, make_learner(), folder)
        if first:
            FitRecord.tidy(folder)
    named = {evaluation if name == "top1" else f"{evaluation}_{name}": value for name, value in values.items()}
    splits = task.splits
    result = Result(
        evaluation, task.encoder.path, splits.train.shown, *splits.counts, splits.classes, settings, trained=named
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
    training = Supervised(
        learner.module,
        learner.optimizer,
        learner.losses,
        learner.rate,
        batch_size=course.batch_size,
        micro_batches=len(course.shares.micro_batches),
        draws=course.draws,
        world_size=world.size,
    )
    _take_up(training, folder / "checkpoints", first)
    decoder, choice = decoder_of(decoder_name, task, task.splits.train, course.shares.longest)
    for_val, _ = decoder_of(decoder.name, task, task.splits.val, BATCH)
    if first:
        console.print(choice)
        if training.position:
            console.print(f"going on at step {training.position // course.batch_size} in {folder}")
    stream = train_batches(task, course, decoder, learner.augment_batch, training.position)
    judged_every = max(1, round(course.judge_every_epochs * task.images / course.batch_size))  # steps
    steps = course.draws // course.batch_size
    saved_every = save_every(course.batch_size, steps)
    with ExitStack() as until_done:
        signals = until_done.enter_context(StopSignals(warn_before_exit))
        kept: FitRecord | None = None
        if first:
            show = until_done.enter_context(training_bar(training.position // course.batch_size, steps))
            kept = FitRecord(folder, settings, training, course.batch_size, show, decoder.name)
            until_done.enter_context(closing(kept))

        def judges(step: int) -> bool:
            return step % judged_every == 0 and steps - step > judged_every // 2  # not shortly before the end

        def judged() -> dict[str, float]:
            learner.module.eval()
            batches = _watched(val_batches(task, for_val), signals)
            return dict(accuracies(learner.logits, batches, lambda batch: task.targets(batch.labels), device))

        def after_step(step: int, outcomes: list[Outcome]) -> None:
            signals.step_done()
            if kept:
                kept.after_step(step, outcomes, last=step == steps)
            if judges(step) and not any(outcome.stop for outcome in outcomes):
                values = judged()
                if kept:
                    kept.judged(step, values)
            if kept and step % saved_every == 0:  # last: who goes on from here has all lines up to here
                kept.begin_to_save()

        ended = training.run(
            _told(stream), after_step, lambda: signals.requested, lambda step: judges(step) or step % saved_every == 0
        )
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


def _told(stream: Stream) -> Iterator[Batch]:
    """The same batches; bad samples, whose place others took, are told."""
    for batch in stream:
        for bad in batch.bad:
            warn(f"sample {bad.key} in {bad.shard} is bad ({bad.reason}); another was drawn in its place")
        yield batch


def _watched(stream: Stream, signals: StopSignals) -> Iterator[Batch]:
    """The same batches; each counts as a step of its own for whoever waits for the end of one."""
    for batch in stream:
        yield batch
        signals.step_done()
