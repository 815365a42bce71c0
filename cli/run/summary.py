"""Prints the summary of a run before it starts: what it is, and how long it will take."""

from __future__ import annotations

import time
from itertools import islice

import torch

from mimcl.cli.config import Config
from mimcl.cli.console import console, format_duration
from mimcl.cli.run.batch_advice import batch_advice
from mimcl.cli.run.curriculum_line import curriculum_line
from mimcl.cli.run.folder import Run
from mimcl.cli.run.requests import request_lines
from mimcl.curriculum.plan import Plan
from mimcl.model.trainer import Trainer
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.stream import Stream


def print_settings(run: Run, config: Config, plan: Plan, index: ShardIndex, device: torch.device, decoder: str) -> None:
    """Print recipe, model, data and curriculum, and what differs from what was asked for; `config` is resolved."""
    data, model = config.data, config.model
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU (no CUDA device)"
    console.print(f"recipe {config.recipe} on {where}, {config.trainer.precision}, {decoder}")
    console.print(
        f"{model.name}/{model.patch_size} at {data.image_size} px, masking {config.masking.name} "
        f"{config.masking.mask_ratio:g}, batch {data.batch_size} in micro-batches of {data.micro_batch_size}"
    )
    console.print(
        f"{index.samples:,} images in {index.shown}, {config.trainer.epochs:g} epochs: {plan.draws:,} draws in "
        f"{plan.draws // data.batch_size:,} steps"
    )
    if not run.resumed and (advice := batch_advice(config, index.samples)):
        console.print(advice)
    console.print(curriculum_line(config, plan))
    if config.curriculum.order == "shard":
        console.print(f"draws come shard by shard within windows of {plan.window_length:,} draws")
    for line in request_lines(plan, index, data.batch_size, run.config.curriculum.order):
        console.print(line)
    by_epochs = config.masking.name in ("hard-patches", "learned") and config.masking.clock == "epoch"
    if by_epochs and config.trainer.epochs <= 1:
        console.print("masks do not get harder within one epoch; --set masking.clock=step moves them at each step")
    if config.optim.warmup_epochs < run.config.optim.warmup_epochs:
        console.print(f"warm-up shortened to a tenth of the run: {config.optim.warmup_epochs:g} epochs")


def print_estimate(trainer: Trainer, stream: Stream, batch_size: int) -> None:
    """Print where a resumed run continues, and how long the steps that are left will take."""
    if trainer.position:
        console.print(f"resuming at draw {trainer.position:,}, step {trainer.position // batch_size:,}")
    if seconds := _seconds_per_micro_batch(trainer, stream):
        left = trainer.steps_left
        console.print(
            f"estimated time: about {format_duration(left * trainer.micro_batches * seconds)} for {left:,} steps, "
            "from a short trial"
        )


def _seconds_per_micro_batch(trainer: Trainer, stream: Stream) -> float | None:
    """Time three micro-batches of the stream and two passes over one; None for a shorter stream."""
    batches = iter(stream)
    first = next(batches, None)
    started = time.perf_counter()
    following = list(islice(batches, 2))
    data = (time.perf_counter() - started) / 2
    batches.close()
    if first is None or len(following) < 2:
        return None
    model = trainer.time_of_micro_batch(first)
    # On a CPU decoding and training share the cores; beside a GPU they overlap.
    return max(data, model) if trainer.model.device.type == "cuda" else data + model
