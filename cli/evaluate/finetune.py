"""Fine-tuning: trains all of an encoder to classify, by MAE's recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mimcl.cli.config import replaced
from mimcl.cli.console import console
from mimcl.cli.errors import ConfigError
from mimcl.cli.evaluate.fit import fit
from mimcl.cli.evaluate.results import Result
from mimcl.cli.evaluate.task import Course, Learner, Task
from mimcl.curriculum.masking.uniforms import mix64
from mimcl.model.classifier_weights import classifier_description
from mimcl.model.config import OptimConfig
from mimcl.model.evaluate.augment import (
    ERASING_NUMBERS,
    MIXING_NUMBERS,
    erase,
    erasing_boxes,
    mix,
    mixing_weights,
    smooth_labels,
)
from mimcl.model.evaluate.finetune import Classifier, normalise, soft_cross_entropy
from mimcl.model.evaluate.finetune_config import FinetuneConfig
from mimcl.model.evaluate.supervised import rate_at
from mimcl.model.world import World
from mimcl.pipeline.augment import STREAM_DROP_PATH, STREAM_ERASING, STREAM_MIXING, STREAM_NOISE, hash64, uniforms
from mimcl.pipeline.rand_augment import rand_augment
from mimcl.pipeline.stream import Batch

_MICRO_BATCH = {"vit_large": 64, "vit_huge": 32}


def finetune(
    path: Path,
    data: str | Path | None = None,
    values: Mapping[str, Any] | None = None,
    micro_batch_size: int | None = None,
    decoder: str = "auto",
    world: World | None = None,
) -> Result:
    """Fine-tune an encoder on the labelled train images of `data`: accuracies "finetune" and "finetune_top5".

    `path` is a run, a checkpoint or a file of weights; `data` None is the data that it was trained on. `values` replace
    fields of MAE's FinetuneConfig for the encoder's size. A call that was stopped or killed resumes from its last
    checkpoint; a finished one returns its result again. Raises DataError when the shards have no val split or cannot
    tell classes apart, CheckpointError when there is no encoder, ConfigError for values that do not fit.
    """
    world = world or World()
    task = Task.load(path, data, world)
    model, size = task.encoder.config.model, task.encoder.config.data.image_size
    config = replaced(FinetuneConfig(), FinetuneConfig.overrides_for(model.name) | dict(values or {}))
    config = _fitting(config, task)
    group = config.mixing_group
    if micro_batch_size is not None and micro_batch_size < group:
        raise ConfigError(
            f"--micro-batch-size {micro_batch_size} is less than mixing_group {group}, which is mixed as a whole; "
            f"give {group} or more, or --set mixing_group={micro_batch_size}"
        )
    at_once = micro_batch_size or max(_MICRO_BATCH.get(model.name, 128), group)
    course = Course.of(config, task.images, world, at_once, group)
    settings = Course.settings_of(config) | {"precision": task.encoder.config.trainer.precision}
    if world.rank == 0:
        console.print(
            f"finetune: {model.name}/{model.patch_size} at {size} px, {task.images:,} images of {task.splits.classes} "
            f"classes, {course.draws // course.batch_size:,} steps"
            + ("; using the recipe of vit_base" if model.name in ("vit_tiny", "vit_small") else "")
        )
        console.print(", ".join(f"{name} {value}" for name, value in settings.items()))
    precision, shards = task.encoder.config.trainer.precision, task.splits.train.shown
    about = classifier_description(model, size, task.class_names, precision, shards, task.splits.counts)
    return fit("finetune", task, course, settings, decoder, lambda: _learner(task, config), about)


def _fitting(config: FinetuneConfig, task: Task) -> FinetuneConfig:
    """Return `config` with a batch that the images fill, in whole mixing groups, and a warm-up that fits the length."""
    group = min(config.mixing_group, task.images, config.batch_size)
    batch = min(config.batch_size, task.images) // group * group
    if batch < config.batch_size and task.world.rank == 0:
        console.print(
            f"batch_size {config.batch_size} reduced to {batch}: {task.images:,} images, in groups of {group}"
        )
    return replace(
        config, batch_size=batch, mixing_group=group, warmup_epochs=min(config.warmup_epochs, config.epochs / 5)
    )


def _learner(task: Task, config: FinetuneConfig) -> Learner:
    model, size = task.encoder.config.model, task.encoder.config.data.image_size
    classifier = Classifier(model, size, task.splits.classes, config.drop_path)
    classifier.initialise(task.encoder.tensors, torch.Generator().manual_seed(config.seed))
    classifier.to(task.device)
    in_bfloat16 = task.encoder.config.trainer.precision == "bfloat16"
    autocast = torch.autocast(task.device.type, torch.bfloat16, enabled=in_bfloat16)
    optimizer = torch.optim.AdamW(classifier.parameter_groups(config), lr=0.0, betas=config.betas, fused=True)
    optim = OptimConfig(config.base_lr, config.weight_decay, config.warmup_epochs, config.betas)

    def numbers(draws: np.ndarray, stream: int, count: int) -> np.ndarray:
        return uniforms(hash64(config.seed, draws, stream), count)

    def losses(batch: Batch) -> Tensor:
        draws, groups = batch.draws, batch.draws[:: config.mixing_group]
        images = normalise(batch.images)
        boxes = erasing_boxes(numbers(draws, STREAM_ERASING, ERASING_NUMBERS), size, config.erasing)
        erase(images, boxes, hash64(config.seed, draws, STREAM_NOISE), mix64)
        targets = smooth_labels(task.targets(batch.labels), task.splits.classes, config.label_smoothing)
        share, cuts = mixing_weights(
            numbers(groups, STREAM_MIXING, MIXING_NUMBERS),
            hash64(config.seed, groups, STREAM_MIXING),
            size,
            config.mixup,
            config.cutmix,
            config.mixing_switch,
        )
        images, targets = mix(images, targets, share, cuts)
        classifier.keep_paths(numbers(draws, STREAM_DROP_PATH, len(classifier.paths)))
        with autocast:
            logits = classifier(images)
        return soft_cross_entropy(logits, targets)

    def logits(batch: Batch) -> Tensor:
        with autocast:
            return classifier(normalise(batch.images)).float()

    def augment_batch(images: Tensor, draws: np.ndarray) -> Tensor:
        return rand_augment(images, draws, config.seed, config.rand_augment, config.rand_augment_std)

    return Learner(
        classifier,
        optimizer,
        losses,
        logits,
        lambda position: rate_at(position, task.images, config.epochs, config.batch_size, optim, config.min_lr),
        augment_batch if config.rand_augment else None,
    )
