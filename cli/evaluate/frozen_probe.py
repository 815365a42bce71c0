"""Train a probe on the tokens of a frozen encoder, for augmented images."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mimcl.cli.console import console
from mimcl.cli.errors import ConfigError
from mimcl.cli.evaluate.fit import fit
from mimcl.cli.evaluate.results import Result
from mimcl.cli.evaluate.task import Course, Learner, Task
from mimcl.model.autoencoder import MaskedAutoencoder
from mimcl.model.config import SIZES, OptimConfig
from mimcl.model.evaluate.linear import LinearConfig
from mimcl.model.evaluate.supervised import rate_at
from mimcl.pipeline.stream import Batch

_SHORT_TRAVEL = 10.0  # how far LARS moves the weights, in units of their norm
_MICRO_BATCH = 512  # a GPU's share in MAE's recipe: batch statistics are taken over so many images


class ProbeKind(NamedTuple):
    """A probe: how it is made for a width and a number of classes, trained, and what it sees of uint8 images."""

    make: Callable[[int, int, torch.Generator], nn.Module]
    optimizer: Callable[[nn.Module, Any], torch.optim.Optimizer]
    features: Callable[[MaskedAutoencoder, Tensor], Tensor]


def fit_probe(
    evaluation: str, recipe: str, task: Task, config: Any, batch_size: int | None, decoder: str, kind: ProbeKind
) -> Result:
    """Train and evaluate a probe, with a batch of at most all images: see `fit`.

    `config` is a configuration of the probe; `batch_size` is what the user asked for. Raises ConfigError for batches of
    which a process would get a single image.
    """
    world = task.world
    batch = min(config.batch_size, task.images)
    config = replace(config, batch_size=batch, warmup_epochs=min(config.warmup_epochs, config.epochs / 5))
    course = Course.of(config, task.images, world, _MICRO_BATCH)
    pieces = world.size * math.ceil(batch / (world.size * _MICRO_BATCH))
    if batch < 2 * pieces:
        raise ConfigError(
            f"batch_size {batch} would give micro-batches of one image, too few for batch normalisation; give "
            f"--batch-size {2 * pieces} or more, or use fewer processes"
        )
    settings = {"recipe": recipe, **Course.settings_of(config), "statistics_of": math.ceil(batch / pieces)}
    settings["precision"] = task.encoder.config.trainer.precision
    if world.rank == 0:
        model = task.encoder.config.model
        if batch < type(config).batch_size and batch_size is None:
            console.print(f"batch_size {type(config).batch_size} reduced to {batch}: there are no more images")
        console.print(
            f"{evaluation}: {model.name}/{model.patch_size}, {task.images:,} images of {task.splits.classes} classes, "
            f"{course.draws // course.batch_size:,} steps"
        )
        console.print(", ".join(f"{name} {value}" for name, value in settings.items()))
        if isinstance(config, LinearConfig) and (travel := config.travel(task.images)) < _SHORT_TRAVEL:
            console.print(
                f"LARS moves the weights by {travel:.2g} times their norm in total (225 on ImageNet): with so few "
                "images the probe learns little; give more --epochs, or use --recipe fast"
            )
    return fit(evaluation, task, course, settings, decoder, lambda: _learner(task, config, kind))


def _learner(task: Task, config: Any, kind: ProbeKind) -> Learner:
    encoder, device = task.encoder.model().to(task.device).requires_grad_(False), task.device
    width, _, _ = SIZES[task.encoder.config.model.name]
    probe = kind.make(width, task.splits.classes, torch.Generator().manual_seed(config.seed)).to(device)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=task.encoder.config.trainer.precision == "bfloat16")
    optim = OptimConfig(config.base_lr, 0.0, config.warmup_epochs)

    def logits(batch: Batch) -> Tensor:
        with autocast:
            features = kind.features(encoder, batch.images)
        return probe(features.float())

    return Learner(
        probe,
        kind.optimizer(probe, config),
        lambda batch: cross_entropy(logits(batch), task.targets(batch.labels), reduction="none"),
        logits,
        lambda position: rate_at(position, task.images, config.epochs, config.batch_size, optim),
    )
