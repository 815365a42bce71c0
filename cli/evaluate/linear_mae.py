"""The linear probe by MAE's recipe: LARS in large batches on the CLS tokens of augmented images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from mimcl.cli.config import replaced
from mimcl.cli.console import console
from mimcl.cli.errors import ConfigError
from mimcl.cli.evaluate.fit import fit
from mimcl.cli.evaluate.results import Result
from mimcl.cli.evaluate.task import Course, Learner, Task
from mimcl.model.config import SIZES, OptimConfig
from mimcl.model.evaluate.linear import LinearConfig, Probe, cls_tokens, lars
from mimcl.model.evaluate.supervised import rate_at
from mimcl.model.world import World
from mimcl.pipeline.stream import Batch

_SHORT_TRAVEL = 10.0  # how far LARS moves the weights, in units of their norm
_MICRO_BATCH = 512  # a GPU's share in MAE's recipe: batch statistics are taken over so many images


def linear_mae(
    path: Path,
    data: str | Path | None = None,
    epochs: float | None = None,
    batch_size: int | None = None,
    decoder: str = "auto",
    world: World | None = None,
    base_lr: float | None = None,
) -> Result:
    """Evaluate a frozen encoder by a linear layer trained by MAE's recipe: accuracies "linear" and "linear_top5".

    `epochs` None is 90, `batch_size` None 16,384, `base_lr` None 0.1, which is scaled by the batch. The rest is
    as in `finetune`.
    """
    world = world or World()
    task = Task.load(path, data, world)
    values: Mapping[str, Any] = {"epochs": epochs, "batch_size": batch_size, "base_lr": base_lr}
    config = replaced(LinearConfig(), {name: value for name, value in values.items() if value is not None})
    batch = min(config.batch_size, task.images)
    config = replace(config, batch_size=batch, warmup_epochs=min(config.warmup_epochs, config.epochs / 5))
    course = Course.of(config, task.images, world, _MICRO_BATCH)
    pieces = world.size * math.ceil(batch / (world.size * _MICRO_BATCH))
    if batch < 2 * pieces:
        raise ConfigError(
            f"batch_size {batch} would give micro-batches of one image, which have no statistics; give "
            f"--batch-size {2 * pieces} or more, or use fewer processes"
        )
    settings = {"recipe": "mae", **Course.settings_of(config), "statistics_of": math.ceil(batch / pieces)}
    settings["precision"] = task.encoder.config.trainer.precision
    if world.rank == 0:
        model = task.encoder.config.model
        if batch < LinearConfig.batch_size and batch_size is None:
            console.print(f"batch_size {LinearConfig.batch_size} becomes {batch}: there are only so many images")
        console.print(
            f"linear: {model.name}/{model.patch_size}, {task.images:,} images of {task.splits.classes} classes, "
            f"{course.draws // course.batch_size:,} steps"
        )
        console.print(", ".join(f"{name} {value}" for name, value in settings.items()))
        if (travel := config.travel(task.images)) < _SHORT_TRAVEL:
            console.print(
                f"LARS moves the weights by {travel:.2g} times their norm in all (with ImageNet by 225): with so few "
                "images the probe learns little; give more --epochs, or use --recipe fast"
            )
    return fit("linear", task, course, settings, decoder, lambda: _learner(task, config))


def _learner(task: Task, config: LinearConfig) -> Learner:
    encoder, device = task.encoder.model().to(task.device).requires_grad_(False), task.device
    width, _, _ = SIZES[task.encoder.config.model.name]
    probe = Probe(width, task.splits.classes, torch.Generator().manual_seed(config.seed)).to(device)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=task.encoder.config.trainer.precision == "bfloat16")
    optim = OptimConfig(config.base_lr, 0.0, config.warmup_epochs)

    def logits(batch: Batch) -> Tensor:
        with autocast:
            features = cls_tokens(encoder, batch.images)
        return probe(features.float())

    return Learner(
        probe,
        lars(probe, config),
        lambda batch: cross_entropy(logits(batch), task.targets(batch.labels), reduction="none"),
        logits,
        lambda position: rate_at(position, task.images, config.epochs, config.batch_size, optim),
    )
