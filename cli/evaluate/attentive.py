"""Evaluate an encoder by an attentive probe: efficient probing of the patch tokens of augmented images."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from mimcl.cli.config import replaced
from mimcl.cli.errors import ConfigError
from mimcl.cli.evaluate.frozen_probe import ProbeKind, fit_probe
from mimcl.cli.evaluate.results import Result
from mimcl.cli.evaluate.task import Task
from mimcl.model.config import SIZES
from mimcl.model.evaluate.attentive import (
    AttentiveConfig,
    AttentiveFastConfig,
    AttentiveProbe,
    adamw,
    patch_tokens,
)
from mimcl.model.evaluate.linear import lars
from mimcl.model.world import World

_MIN_STEPS = 300  # small data sets get more epochs


def attentive(
    path: Path,
    data: str | Path | None = None,
    recipe: Literal["fast", "mae"] = "fast",
    values: dict[str, Any] | None = None,
    decoder: str = "auto",
    world: World | None = None,
) -> Result:
    """Evaluate a frozen encoder by an attentive probe: accuracies "attentive" and "attentive_top5".

    `values` replace fields of AttentiveFastConfig, or of AttentiveConfig with the recipe "mae", which is the published
    one. Without "epochs" the fast recipe makes at least 300 steps. The rest is as in `finetune`.
    """
    task = Task.load(path, data, world or World())
    given = {name: value for name, value in (values or {}).items() if value is not None}
    config: Any = replaced(AttentiveConfig() if recipe == "mae" else AttentiveFastConfig(), given)
    if recipe == "fast" and "epochs" not in given:
        steps_an_epoch = task.images / min(config.batch_size, task.images)
        config = replaced(config, {"epochs": max(config.epochs, round(_MIN_STEPS / steps_an_epoch, 2))})
    width = SIZES[task.encoder.config.model.name][0]
    if config.queries < 1 or width % config.queries:
        raise ConfigError(f"--queries is {config.queries}; it must divide the width of a token, {width}")

    def make(width: int, classes: int, generator: torch.Generator) -> nn.Module:
        return AttentiveProbe(width, config.queries, classes, generator)

    optimizer: Any = lars if recipe == "mae" else adamw
    kind = ProbeKind(make, optimizer, patch_tokens)
    return fit_probe("attentive", recipe, task, config, given.get("batch_size"), decoder, kind)
