"""Resolves what a configuration leaves open, for the data and the machine."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Literal

from mimcl.cli.config import Config
from mimcl.cli.run.device import has_cuda
from mimcl.curriculum.config import CurriculumConfig
from mimcl.pipeline.data_config import DecoderName
from mimcl.pipeline.remote.request_limit import has_request_limit

# The values that `resolve` may change.
RESOLVED = {
    "curriculum.order",
    "curriculum.window",
    "data.decoder",
    "optim.warmup_epochs",
    "trainer.keep_every_steps",
    "trainer.precision",
}


def draws_of(config: Config, samples: int) -> int:
    """Return the length T of a run in draws."""
    return whole_batches(config.trainer.epochs, samples, config.data.batch_size)


def whole_batches(epochs: float, samples: int, batch_size: int) -> int:
    """Return `epochs` times the samples in draws, rounded up to whole batches."""
    # Rounded first: 0.1 epochs of 640 samples are 64 draws, not the 65 of a product just above it.
    return batch_size * max(1, math.ceil(round(epochs * samples, 6) / batch_size))


def warmup_epochs(config: Config) -> float:
    """Return the length of the warm-up: as configured, but at most a tenth of the run."""
    return min(config.optim.warmup_epochs, config.trainer.epochs / 10)


def resolve_order(config: Config) -> Config:
    """Return `config` with the order of its draws: if left open, by shard where the data's server limits requests."""
    return replace(config, curriculum=resolved_order(config.curriculum, config.data.root))


def resolved_order(curriculum: CurriculumConfig, root: str) -> CurriculumConfig:
    """As `resolve_order`, of a curriculum over the data at `root`."""
    if curriculum.order != "auto":
        return curriculum
    order: Literal["random", "shard"] = "shard" if has_request_limit(root) else "random"
    return replace(curriculum, order=order)


def resolve(config: Config, window: int | None, decoder: DecoderName, steps: int | None = None) -> Config:
    """Return `config` with its open values filled in.

    They are the window in draws, their order, the decoder, the precision, a warm-up that fits the run's length and,
    where the run's number of `steps` is known, which checkpoints are kept permanently.
    """
    config = resolve_order(config)
    precision = config.trainer.precision
    if precision == "auto":
        precision = "bfloat16" if has_bfloat16() else "float32"
    kept, every = config.trainer.keep_every_steps, config.trainer.checkpoint_every_steps
    if kept is None and steps is not None:
        kept = every * math.ceil(steps / (4 * every))
    return replace(
        config,
        data=replace(config.data, decoder=decoder),
        curriculum=replace(config.curriculum, window=window),
        optim=replace(config.optim, warmup_epochs=warmup_epochs(config)),
        trainer=replace(config.trainer, precision=precision, keep_every_steps=kept),
    )


def has_bfloat16() -> bool:
    """Whether the GPU, or without one the processor, multiplies in bfloat16 instead of emulating it."""
    if has_cuda():
        import torch

        return torch.cuda.is_bf16_supported(including_emulation=False)
    try:
        flags = Path("/proc/cpuinfo").read_text("utf-8").split()
    except OSError:
        return False
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(flags)
