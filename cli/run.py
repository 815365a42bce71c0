"""A run's folder and configuration: made new, or taken up again."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray

from mimcl.cli.config import Config, ConfigError, flatten, override, read_yaml
from mimcl.cli.recipes import recipe
from mimcl.curriculum.sampler import Plan
from mimcl.model import checkpoint
from mimcl.model.trainer import Trainer
from mimcl.pipeline.index import ShardIndex

# What may change when a run goes on: nothing that a draw, a mask or an update depends on.
_FREE = {
    "data.root",
    "data.decoder",
    "data.decode_threads",
    "data.micro_batch_size",
    "data.prefetch",
    "data.stall_timeout",
    "trainer.log_every_steps",
    "trainer.checkpoint_every_steps",
    "trainer.keep_last",
    "trainer.max_nonfinite",
}


@dataclass(frozen=True)
class Run:
    """Where a run lives, what it is, and the checkpoint it goes on from (None: the beginning)."""

    folder: Path
    config: Config
    checkpoint: Path | None


def open_run(recipe_name: str | None, values: Mapping[str, Any], out: Path | None, resume: bool) -> Run:
    """Decides folder and configuration; writes nothing.

    Start-up priority: (1) with `resume`, the newest checkpoint of `out` and its config.yaml, which `values` may not
    contradict; (2) a new run in `out`; (3) a new run in runs/RECIPE-CURRICULUM-MASKING, then -2, -3.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("training in several processes is not built yet; start mimcl train without torchrun")
    if resume and out is None:
        raise ConfigError("--resume needs the run: mimcl train --out runs/NAME --resume")
    found = checkpoint.latest(out / "checkpoints") if resume and out else None
    if found:
        return Run(out, _unchanged(out / "config.yaml", recipe_name, values), found)
    if out and out.exists() and any(out.iterdir()) and not resume:
        raise ConfigError(f"{out} exists; give another --out, or --resume to go on there")
    values = dict(values)
    name = recipe_name or values.pop("recipe", None) or "auto"
    config = override(recipe(name), values)
    return Run(out or _free_folder(config), config, None)


def draws_of(config: Config, samples: int) -> int:
    """The run's length T: whole batches that hold `epochs` times the samples."""
    # Rounded first: 0.1 epochs of 640 samples are 64 draws, not the 65 of a product just above it.
    wanted = round(config.trainer.epochs * samples, 6)
    return config.data.batch_size * max(1, math.ceil(wanted / config.data.batch_size))


def load_distances(config: Config, index: ShardIndex) -> NDArray[np.float32] | None:
    """The prototype distance of each sample, None without a curriculum. Raises PrototypeError."""
    if config.curriculum.name == "none":
        return None
    from mimcl.curriculum.prototypes import PrototypeSet

    folder = index.root / "prototypes" / config.curriculum.prototypes
    return PrototypeSet.load(folder, index.fingerprint).distance


def fingerprints(index: ShardIndex, distances: NDArray[np.float32] | None) -> dict[str, str | None]:
    """What a checkpoint remembers of the data it was trained on."""
    of_distances = None if distances is None else xxhash.xxh128_hexdigest(np.ascontiguousarray(distances))
    return {"index": index.fingerprint, "prototypes": of_distances}


def take_up(trainer: Trainer, plan: Plan, path: Path, now: dict[str, str | None]) -> None:
    """Puts `trainer` where the checkpoint was saved. Raises CheckpointError when its data or plan were others."""
    saved = checkpoint.load(path)
    then = saved.meta["fingerprints"]
    for what in now:
        if then[what] != now[what]:
            raise checkpoint.CheckpointError(
                f"the {what} changed since {path} was saved (fingerprint {then[what]}, now {now[what]}); restore the "
                "data, or start a new run"
            )
    window = saved.meta["window"]
    if plan.window(window["number"]).digest != window["digest"]:
        raise checkpoint.CheckpointError(
            f"window {window['number']} of {path} was drawn otherwise than it is here; resume with the same versions "
            "of mimcl and numpy on the same kind of processor"
        )
    trainer.load(saved.tensors, saved.state)


def resolve(config: Config, window: int, decoder: str) -> Config:
    """`config` with nothing left open: decoder, window, precision, and a warm-up that fits the run's length."""
    precision = config.trainer.precision
    if precision == "auto":
        precision = "bfloat16" if _has_bfloat16() else "float32"
    return replace(
        config,
        data=replace(config.data, decoder=decoder),
        curriculum=replace(config.curriculum, window=window),
        optim=replace(config.optim, warmup_epochs=min(config.optim.warmup_epochs, config.trainer.epochs / 10)),
        trainer=replace(config.trainer, precision=precision),
    )


def _has_bfloat16() -> bool:
    """Whether this processor, or the GPU, multiplies in bfloat16 rather than emulating it."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(flags)


def _unchanged(path: Path, recipe_name: str | None, values: Mapping[str, Any]) -> Config:
    saved = override(Config(), read_yaml(path))
    wanted = override(saved, values)
    if recipe_name not in (None, "auto", saved.recipe):
        raise ConfigError(f"recipe is {recipe_name} but the run in {path.parent} has {saved.recipe}; leave it out")
    # What was left open, or asked for beyond what fits, is the same run if it comes to the same.
    wanted = resolve(wanted, wanted.curriculum.window or saved.curriculum.window, wanted.data.decoder)
    before, after = flatten(saved), flatten(wanted)
    for key in before:
        if before[key] != after[key] and key not in _FREE:
            raise ConfigError(f"{key} is {after[key]!r} but the run in {path.parent} has {before[key]!r}; leave it out")
    return wanted


def _free_folder(config: Config) -> Path:
    name = f"{config.recipe}-{config.curriculum.name}-{config.masking.name}"
    candidates = (Path("runs") / (name if number == 1 else f"{name}-{number}") for number in count(1))
    return next(folder for folder in candidates if not folder.exists())
