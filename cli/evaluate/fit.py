"""Trains with labels from beginning to end, resumably: the training, its evaluation, the result."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

from mimcl.cli.bars import TrainingBar
from mimcl.cli.console import console, warn, warn_before_exit
from mimcl.cli.encoders.bad_images import BadImages
from mimcl.cli.encoders.split_features import BATCH
from mimcl.cli.errors import Stopped
from mimcl.cli.evaluate.fit_recorder import LEFT_OUT, FitRecorder, save_every
from mimcl.cli.evaluate.results import Result, record
from mimcl.cli.evaluate.task import TIMEOUT_S, Course, Learner, Task, decoder_of, train_batches, val_batches
from mimcl.cli.run.folder import claimed
from mimcl.cli.run.malloc import keep_freed_memory
from mimcl.cli.run.resume import newest_checkpoint
from mimcl.cli.run.signals import StopSignals
from mimcl.cli.run.supervisor import saved_at_end, saved_position
from mimcl.model.distributed import agree, connected, gather
from mimcl.model.evaluate.supervised import LabelledObjective, accuracies
from mimcl.model.steps import StepLoop
from mimcl.pipeline.stream import Batch, Stream


def fit(
    evaluation: str,
    task: Task,
    course: Course,
    settings: dict[str, Any],
    decoder: str,
    make_learner: Callable[[], Learner],
    about: Mapping[str, Any] | None = None,
) -> Result:
    """Train a learner on the labelled train images and evaluate it on the val images, on all ranks.

    Checkpoints lie in `encoder.home`/evaluation/EVALUATION/DIGEST, a folder for each choice of settings; in the end
    only the weights of the last step stay there, with what `about` says of them in classifier.json. Raises Stopped,
    saved, after SIGTERM or Ctrl-C.
    """
    world, device = task.world, task.device
    digest = task.digest(settings)
    folder = task.encoder.home / "evaluation" / evaluation / digest[:12]
    first = world.rank == 0
    with ExitStack() as until_done:
        if first:
            until_done.enter_context(claimed(folder))
        until_done.enter_context(connected(world, device, TIMEOUT_S + 60))
        agree("the evaluation", digest)
        if first and about is not None:
            FitRecorder.describe(folder, about)
        # Rank 0's: the others may not see its disk.
        values = json.loads(gather(json.dumps(FitRecorder.values(folder)) if first else "")[0])
        if values is not None:
            if first:
                console.print(f"{folder} has the result already; remove the folder to compute it again")
        else:
            keep_freed_memory()
            values = _trained(evaluation, task, course, settings, decoder, make_learner(), folder)
        if first:
            FitRecorder.tidy(folder)
    left_out = int(values.pop(LEFT_OUT, 0))
    named = {evaluation if name == "top1" else f"{evaluation}_{name}": value for name, value in values.items()}
    splits = task.splits
    train, val = splits.counts
    result = Result(
        evaluation,
        task.encoder.path,
        splits.train.shown,
        train,
        val - left_out,
        splits.classes,
        settings,
        trained=named,
        unseen=splits.unseen,
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
    """Return the accuracies, "top1" and "top5", and how many val images are bad and skipped, on every rank."""
    world, device, first = task.world, task.device, task.world.rank == 0
    objective = LabelledObjective(
        learner.module,
        learner.optimizer,
        learner.losses,
        learner.rate,
        batch_size=course.batch_size,
        world_size=world.size,
    )
    loop: StepLoop[Batch] = StepLoop(
        objective,
        device,
        batch_size=course.batch_size,
        micro_batches=len(course.shares.micro_batches),
        draws=course.draws,
    )
    if saved := newest_checkpoint(folder / "checkpoints", first, warn):
        learner.module.load_state_dict(saved.tensors)
        loop.load_state_dict(saved.state)
    decoder, choice = decoder_of(decoder_name, task, task.splits.train, course.shares.longest)
    val_decoder, _ = decoder_of(decoder.name, task, task.splits.val, BATCH)
    if first:
        console.print(choice)
        if loop.position:
            console.print(f"resuming at step {loop.position // course.batch_size} in {folder}")
    stream = train_batches(task, course, decoder, learner.augment_batch, loop.position)
    val_bad = BadImages(task.splits.val)
    evaluate_every = max(1, round(course.judge_every_epochs * task.images / course.batch_size))  # steps
    steps = course.draws // course.batch_size
    save_after = save_every(course.batch_size, steps)

    def evaluates(step: int) -> bool:
        return step % evaluate_every == 0 and steps - step > evaluate_every // 2  # not shortly before the end

    def evaluate() -> dict[str, float]:
        learner.module.eval()
        batches = signals.timed(val_bad.without(val_batches(task, val_decoder)))
        return dict(accuracies(learner.logits, batches, lambda batch: task.targets(batch.labels), device))

    signals = StopSignals(warn_before_exit)
    bar = TrainingBar(loop.position // course.batch_size, steps, len(course.shares.micro_batches), first)
    with signals, bar.running():
        recorder = None
        if first:
            recorder = FitRecorder(folder, settings, loop, objective.tensors, course.batch_size, bar.show, decoder.name)
        continued = f"it is in {folder}; run the same command to resume"
        signals.abandon_with(loop.changing, lambda: saved_position(recorder, loop.flush), continued)
        with recorder or nullcontext():
            with saved_at_end(recorder, signals):
                is_due = lambda step: evaluates(step) or step % save_after == 0  # noqa: E731
                for step in signals.timed(
                    loop.steps(_warn_of_bad(stream), [bar], stop=lambda: signals.requested, is_due=is_due)
                ):
                    if recorder:
                        recorder.write(step, last=step.number == steps)
                    if evaluates(step.number) and not step.stopping:
                        with bar.paused(), loop.unchanged():
                            values = evaluate()
                        if recorder:
                            recorder.evaluated(values)
                    if recorder and step.number % save_after == 0:  # last: a resumed training has all lines up to here
                        recorder.begin_save()
            if loop.position < course.draws:
                raise Stopped(f"stopped and saved in {folder}; run the same command to resume" if first else "")
            values, left_out = evaluate(), sum(map(int, gather(str(val_bad.count))))
            if recorder:
                recorder.finish(values, left_out)
    return values | {LEFT_OUT: left_out}


def _warn_of_bad(stream: Stream) -> Iterator[Batch]:
    """Yield the same batches; warn of bad samples, which were replaced by others."""
    for batch in stream:
        for bad in batch.bad:
            warn(f"sample {bad.key} in {bad.shard} is bad ({bad.reason}); it was replaced by another")
        yield batch
