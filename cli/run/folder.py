"""A run's folder and configuration: made new, or taken up again."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray

from mimcl.cli.config import Config, flatten, nested_keys, override, read_yaml
from mimcl.cli.errors import ConfigError
from mimcl.cli.recipes import recipe
from mimcl.model import checkpoint
from mimcl.model.distributed import agree
from mimcl.pipeline.folder_lock import FolderLock
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.verify_cache import check_once

# What may change when a run goes on: nothing that a draw or a mask depends on.
FREE = {
    "data.root",
    "data.decoder",
    "data.decode_threads",
    "data.micro_batch_size",
    "data.prefetch",
    "data.stall_timeout",
    "data.max_bad",
    "trainer.log_every_steps",
    "trainer.checkpoint_every_steps",
    "trainer.keep_last",
    "trainer.keep_every_steps",
    "trainer.max_nonfinite",
    "trainer.online_knn_epochs",
    "log.wandb",
    "log.mlflow",
    "report",
}
_ALMOST_FREE = {"data.decoder", "data.micro_batch_size"}  # of these, pixels and sums of losses depend on their bits

# Of what may change, processes that train together need these alike: they say when they tell each other what.
_ALIKE = {
    "data.max_bad",
    "trainer.log_every_steps",
    "trainer.checkpoint_every_steps",
    "trainer.max_nonfinite",
    "trainer.online_knn_epochs",
}
_LOCK_SECONDS = 60.0  # twice what a process needs to notice that another machine is gone
DATA = ("index", "prototypes")  # fingerprints, which --allow-change takes as well


@dataclass(frozen=True)
class Run:
    """Where a run lives, what it is, whether it goes on from a checkpoint, and which changes of it are allowed."""

    folder: Path
    config: Config
    resumed: bool
    allowed: frozenset[str] = frozenset()
    told: tuple[str, ...] = ()  # of damaged checkpoints, already

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"


def open_run(
    recipe_name: str | None = None,
    values: Mapping[str, Any] = MappingProxyType({}),
    out: Path | None = None,
    resume: bool = False,
    allowed: Sequence[str] = (),
    warn: Callable[[str], None] = lambda line: None,
) -> Run:
    """Decides folder and configuration; writes nothing.

    `values` has dotted keys, for example {"curriculum.name": "proto"}; `recipe_name` None is "auto".

    Start-up priority: (1) with `resume`, the newest whole checkpoint of `out` and the configuration that it was saved
    with, which `values` may contradict in `allowed` fields alone; (2) with `resume`, the config.yaml of a run that was
    killed before its first checkpoint, under the same rule; (3) a new run in `out`; (4) a new run in
    runs/RECIPE-CURRICULUM-MASKING, then -2, -3.
    """
    if unknown := set(allowed) - (flatten(Config()).keys() - {"recipe"}) - set(DATA):
        raise ConfigError(f"--allow-change {min(unknown)}: no such field; give section.key, {' or '.join(DATA)}")
    if out and out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; give a folder with --out")
    if resume and out is None:
        raise ConfigError("--resume needs the run: mimcl train --out runs/NAME --resume")
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) and not resume:
        raise ConfigError("torchrun started this run again; that needs --out runs/NAME --resume from the beginning")
    if resume and (checkpoint.candidates(out / "checkpoints") or (out / "checkpoints" / "latest").exists()):
        told: list[str] = []
        try:
            meta = checkpoint.newest(out / "checkpoints", checkpoint.read_meta, told.append)
        finally:
            for line in told:
                warn(line)
        saved = override(Config(), nested_keys(meta["config"]))
        config = _unchanged(saved, out, recipe_name, values, allowed, warn)
        return Run(out, config, True, frozenset(allowed), tuple(told))
    if resume and (out / "config.yaml").exists():
        saved = override(Config(), read_yaml(out / "config.yaml"))
        return Run(out, _unchanged(saved, out, recipe_name, values, allowed, warn), False)
    if out and out.exists() and any(out.iterdir()) and not resume:
        raise ConfigError(f"{out} exists; give another --out, or --resume to go on there")
    config = new_config(recipe_name, values)
    return Run(out or _free_folder(config), config, False)


def new_config(recipe_name: str | None, values: Mapping[str, Any]) -> Config:
    """That of a new run: the recipe named, or else the one that `values` name, or else auto, with `values` in it."""
    values = dict(values)
    name = recipe_name or values.pop("recipe", None) or "auto"
    return override(recipe(name), values)


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Makes the run folder, and keeps other processes from writing to it while the block lasts."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(folder)
    except OSError as error:
        raise ConfigError(f"run folder {folder} cannot be made: {error.strerror}; give another --out") from None
    # After torchrun's restart the process before may be on another machine, which has not yet noticed that it is alone.
    timeout_s = _LOCK_SECONDS if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) else 0
    with lock:
        if not lock.acquire(timeout_s):
            raise ConfigError(f"{folder} is being written by another process; wait for it, or give another --out")
        yield


def draws_of(config: Config, samples: int) -> int:
    """The run's length T: whole batches that hold `epochs` times the samples."""
    # Rounded first: 0.1 epochs of 640 samples are 64 draws, not the 65 of a product just above it.
    wanted = round(config.trainer.epochs * samples, 6)
    return config.data.batch_size * max(1, math.ceil(wanted / config.data.batch_size))


def load_distances(config: Config, index: ShardIndex) -> NDArray[np.float32] | None:
    """The prototype distance of each sample, None without a curriculum. Raises PrototypeError, DataError."""
    if config.curriculum.name == "none":
        return None
    from mimcl.curriculum.prototypes import PrototypeSet

    folder = index.prototypes_folder(config.curriculum.prototypes)
    return PrototypeSet.load(folder, index.fingerprint, check_once).distance


def fingerprints(index: ShardIndex, distances: NDArray[np.float32] | None) -> dict[str, str | None]:
    """What a checkpoint remembers of the data it was trained on."""
    of_distances = None if distances is None else xxhash.xxh128_hexdigest(np.ascontiguousarray(distances))
    return {"index": index.fingerprint, "prototypes": of_distances}


def agree_on(config: Config, fingerprints: dict[str, str | None], resumed: bool) -> None:
    """Raises DistributedError unless all ranks train the same model on the same data, from the same point on."""
    fixed = {key: value for key, value in flatten(config).items() if key not in FREE - _ALIKE}
    agree("the configuration", xxhash.xxh64_hexdigest(json.dumps(fixed).encode()))
    agree("the data", xxhash.xxh64_hexdigest(json.dumps(fingerprints).encode()))
    # A shared folder may show a checkpoint to one machine before the other.
    agree("whether there is a checkpoint to go on from", f"{resumed:d}")


def warmup_epochs(config: Config) -> float:
    """As configured, but at most a tenth of the run."""
    return min(config.optim.warmup_epochs, config.trainer.epochs / 10)


def resolve(config: Config, window: int, decoder: str, steps: int | None = None) -> Config:
    """`config` with nothing left open: decoder, window, precision, a warm-up that fits the run's length, and, where the
    run's `steps` are known, which checkpoints are kept for good.
    """
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
    """Whether this processor, or the GPU, multiplies in bfloat16 rather than emulating it."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(flags)


def _unchanged(
    saved: Config,
    folder: Path,
    recipe_name: str | None,
    values: Mapping[str, Any],
    allowed: Sequence[str],
    warn: Callable[[str], None],
) -> Config:
    if "trainer.epochs" in allowed and "optim.warmup_epochs" not in values:
        allowed = (*allowed, "optim.warmup_epochs")  # shortened with the run
    wanted = override(saved, values)
    recipe_name = recipe_name or values.get("recipe")
    if recipe_name not in (None, "auto", saved.recipe):
        raise ConfigError(f"recipe is {recipe_name} but the run in {folder} has {saved.recipe}; leave it out")
    # What was left open, or asked for beyond what fits, is the same run if it comes to the same.
    wanted = resolve(wanted, wanted.curriculum.window or saved.curriculum.window, wanted.data.decoder)
    before, after = flatten(saved), flatten(wanted)
    for key in before:
        if before[key] != after[key] and key not in FREE.union(allowed):
            raise ConfigError(
                f"{key} is {after[key]!r} but the run in {folder} has {before[key]!r}; leave it out, or allow it with "
                f"--allow-change {key}"
            )
        if before[key] != after[key] and key in _ALMOST_FREE:
            warn(f"{key} changes from {before[key]!r} to {after[key]!r}: the same draws, but not the same bits")
    return wanted


def _free_folder(config: Config) -> Path:
    name = f"{config.recipe}-{config.curriculum.name}-{config.masking.name}"
    candidates = (Path("runs") / (name if number == 1 else f"{name}-{number}") for number in count(1))
    return next(folder for folder in candidates if not folder.exists())
