"""The configuration of a resumed run: the saved one, with the changes that do not alter its draws or are allowed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mimcl.cli.config import Config, flatten, override
from mimcl.cli.errors import ConfigError
from mimcl.cli.run.resolve import draws_of, resolve
from mimcl.cli.suggest import quote

# What may change when a run is resumed: no draw and no mask depends on it.
FREE = {
    "data.root",
    "curriculum.prototypes",  # a place like the root: checkpoints know the distances
    "data.decoder",
    "data.decode_threads",
    "data.keep_decoded",
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
    "trainer.online_rank_epochs",
    "log.wandb",
    "log.mlflow",
    "report",
}
# They change the bits of pixels and of sums of losses.
_ALMOST_FREE = {"data.decoder", "data.keep_decoded", "data.micro_batch_size"}
_OPEN = {"curriculum.window", "curriculum.order", "trainer.precision"}  # None or "auto" mean the run's own value


def resumed_config(
    saved: Config,
    folder: Path,
    recipe_name: str | None,
    values: Mapping[str, Any],
    allowed: Collection[str],
    samples: int | None,
    warn: Callable[[str], None],
) -> Config:
    """Return `saved` with the changes in `values`, and with what follows from these.

    samples: the number of images that the run was trained on, if known. Raises ConfigError for a change that is neither
    free nor `allowed`.
    """
    recipe_name = recipe_name or values.get("recipe")
    if recipe_name not in (None, "auto", saved.recipe):
        raise ConfigError(f"recipe is {recipe_name} but the run in {folder} has {saved.recipe}; leave it out")
    wanted = _as_asked(saved, override(saved, values))
    before, after = flatten(saved), flatten(wanted)
    changed = [key for key in before if after[key] != before[key]]
    if refused := [key for key in changed if key not in FREE.union(allowed)]:
        them = "it" if len(refused) == 1 else "them"
        raise ConfigError(
            f"{_values(refused, after)} but the run in {folder} has {', '.join(repr(before[key]) for key in refused)}; "
            f"leave {them} out, or allow {them} with {' '.join(f'--allow-change {quote(key)}' for key in refused)}"
        )
    for key in changed:
        if key in _ALMOST_FREE:
            warn(f"{key} changes from {before[key]!r} to {after[key]!r}: same draws, but results are not bit-identical")
    if samples is not None:
        wanted = _with_what_follows(wanted, saved, set(changed), samples)
    return resolve(wanted, wanted.curriculum.window, wanted.data.decoder)


def _as_asked(saved: Config, wanted: Config) -> Config:
    """Return `wanted` without values that mean no change: those left open, and a warm-up that was shortened before."""
    before, after = flatten(saved), flatten(wanted)
    same = {key: before[key] for key in _OPEN if after[key] in (None, "auto")}
    if min(wanted.optim.warmup_epochs, saved.trainer.epochs / 10) == saved.optim.warmup_epochs:
        same["optim.warmup_epochs"] = saved.optim.warmup_epochs
    return override(wanted, same)


def _with_what_follows(wanted: Config, saved: Config, changed: set[str], samples: int) -> Config:
    """Derive again what was derived from values that have changed, unless it was given itself."""
    of_window, of_kept = {"curriculum.slice", "data.batch_size"}, {"trainer.epochs", "trainer.checkpoint_every_steps"}
    if "curriculum.window" not in changed and changed & of_window:
        derived = replace(saved.curriculum, window=None).window_length(samples, saved.data.batch_size)
        if saved.curriculum.window == derived:
            open_window = replace(wanted.curriculum, window=None)
            window = open_window.window_length(samples, wanted.data.batch_size)
            wanted = replace(wanted, curriculum=replace(wanted.curriculum, window=window))
    if "trainer.keep_every_steps" not in changed and changed & {*of_kept, "data.batch_size"}:
        left_open = replace(saved, trainer=replace(saved.trainer, keep_every_steps=None))
        steps = draws_of(saved, samples) // saved.data.batch_size
        of_steps = resolve(left_open, saved.curriculum.window, saved.data.decoder, steps).trainer.keep_every_steps
        if saved.trainer.keep_every_steps == of_steps:
            wanted = replace(wanted, trainer=replace(wanted.trainer, keep_every_steps=None))
    return wanted


def _values(keys: list[str], config: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} is {config[key]!r}" for key in keys)
