"""Prints the summary of a run before it starts."""

from __future__ import annotations

import torch

from mimcl.cli.config import Config
from mimcl.cli.console import console, format_epochs
from mimcl.cli.run.batch_advice import batch_advice
from mimcl.cli.run.curriculum_line import curriculum_line
from mimcl.cli.run.folder import Run, free_folder
from mimcl.cli.run.requests import request_lines
from mimcl.cli.run.sides import resolution_line
from mimcl.curriculum.plan import Plan
from mimcl.curriculum.resolution import Resolution
from mimcl.pipeline.index import ShardIndex


def print_settings(
    run: Run,
    config: Config,
    plan: Plan,
    sides: Resolution,
    index: ShardIndex,
    device: torch.device,
    decoder: str,
    processes: int,
) -> None:
    """Print recipe, model, data and curriculum, and what differs from what was asked for; `config` is resolved."""
    data, model = config.data, config.model
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU (no CUDA device)"
    console.print(f"recipe {config.recipe} on {where}, {config.trainer.precision}, {decoder}")
    console.print(
        f"{model.name}/{model.patch_size} at {data.image_size} px, masking {config.masking.name} "
        f"{config.masking.mask_ratio:g}, batch {data.batch_size} in micro-batches of {data.micro_batch_size}"
    )
    console.print(
        f"{index.samples:,} images in {index.shown}, {format_epochs(config.trainer.epochs)}: {plan.draws:,} draws in "
        f"{plan.draws // data.batch_size:,} steps"
    )
    if not run.resumed and (advice := batch_advice(run.config, index.samples, processes, free_folder(run.folder))):
        console.print(advice)
    console.print(curriculum_line(config, plan))
    if sides.changes:
        console.print(resolution_line(config, sides))
    if config.curriculum.order == "shard":
        console.print(f"draws come shard by shard within windows of {plan.window_length:,} draws")
    for line in request_lines(plan, index, data.batch_size, run.config.curriculum.order):
        console.print(line)
    by_epochs = config.masking.name in ("hard-patches", "learned") and config.masking.clock == "epoch"
    if by_epochs and config.trainer.epochs <= 1:
        console.print("masks do not get harder within one epoch; --set masking.clock=step updates them at each step")
    if config.optim.warmup_epochs < run.config.optim.warmup_epochs:
        console.print(f"warm-up shortened to a tenth of the run: {format_epochs(config.optim.warmup_epochs)}")
