"""The linear probe by MAE's recipe: LARS in large batches on the CLS tokens of augmented images."""

from __future__ import annotations

from pathlib import Path

from mimcl.cli.config import replaced
from mimcl.cli.evaluate.frozen_probe import ProbeKind, fit_probe
from mimcl.cli.evaluate.results import Result
from mimcl.cli.evaluate.task import Task
from mimcl.model.evaluate.linear import LinearConfig, Probe, cls_tokens, lars
from mimcl.model.world import World


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
    task = Task.load(path, data, world or World())
    values = {"epochs": epochs, "batch_size": batch_size, "base_lr": base_lr}
    config = replaced(LinearConfig(), {name: value for name, value in values.items() if value is not None})
    return fit_probe("linear", "mae", task, config, batch_size, decoder, ProbeKind(Probe, lars, cls_tokens))
