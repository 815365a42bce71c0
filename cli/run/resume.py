"""Resumes a training from its newest complete checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from mimcl.cli.errors import ConfigError
from mimcl.cli.run.folder import DATA, Run
from mimcl.curriculum.learned_temperature import LearnedTemperature
from mimcl.curriculum.plan import Plan
from mimcl.model import checkpoint
from mimcl.model.distributed import from_first
from mimcl.model.trainer import Trainer
from mimcl.pipeline.draw_counts import DrawCounts

LEARNED = "learned_temperature"  # its state in a checkpoint's
_FEED_THE_PLAN = {"seed", "data.batch_size", "trainer.epochs", *DATA}  # besides curriculum.*: a plan depends on them


def newest_checkpoint(folder: Path, is_first: bool, warn: Callable[[str], None]) -> checkpoint.Checkpoint | None:
    """Load the newest complete checkpoint that rank 0 finds in `folder`, on all ranks; None where there is none.

    Raises CheckpointError.
    """
    saved = None
    if is_first and (checkpoint.candidates(folder) or (folder / "latest").exists()):
        saved = checkpoint.newest(folder, checkpoint.load, warn)
    step = from_first(int(saved.path.name) if saved else 0)
    if not step:
        return None
    return saved or checkpoint.load(folder / f"{step:08d}")


def resume_run(
    trainer: Trainer,
    plan: Plan,
    run: Run,
    fingerprints: dict[str, str | None],
    is_first: bool,
    warn: Callable[[str], None],
) -> DrawCounts:
    """Load the run's newest complete checkpoint into `trainer` and into a learned temperature of `plan`.

    Returns how often each sample had been drawn by then. `fingerprints` are those of the data now. Raises
    CheckpointError when it does not fit, or was trained on other data or by another plan and that is not allowed.
    """
    saved = newest_checkpoint(run.checkpoints, is_first, lambda line: None if line in run.reported else warn(line))
    if saved is None:
        raise checkpoint.CheckpointError(
            f"no checkpoint was found in {run.checkpoints}; start the run without --resume"
        )
    then = saved.meta["fingerprints"]
    for what in DATA:
        if then[what] != fingerprints[what] and what not in run.allowed:
            raise checkpoint.CheckpointError(
                f"the {what} changed since {saved.path} was saved (fingerprint {then[what]}, now "
                f"{fingerprints[what]}); restore the data, start a new run, or give --allow-change {what}"
            )
    if plan.learned:  # first: what a window is follows from it
        _resume_temperature(plan.learned, saved)
    window = saved.meta["window"]
    plan_may_differ = any(name.startswith("curriculum.") or name in _FEED_THE_PLAN for name in run.allowed)
    if not plan_may_differ and plan.window(window["number"]).digest != window["digest"]:
        raise checkpoint.CheckpointError(
            f"the draws of window {window['number']} differ from those in {saved.path}; resume with the same shards "
            "and versions of mimcl and numpy, on the same kind of processor"
        )
    try:
        trainer.load(saved.tensors, saved.state)
    except (RuntimeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise checkpoint.CheckpointError(f"{saved.path} does not fit the model of this run: {reason[:300]}") from None
    if trainer.position > plan.draws:
        raise ConfigError(
            f"trainer.epochs: this run would end at draw {plan.draws:,}, but it has reached draw {trainer.position:,}"
        )
    counts = saved.state["draw_counts"].numpy().view(np.uint32)
    return DrawCounts(counts if len(counts) == plan.samples else np.zeros(plan.samples, np.uint32))


def _resume_temperature(learned: LearnedTemperature, saved: checkpoint.Checkpoint) -> None:
    if LEARNED not in saved.state:
        raise checkpoint.CheckpointError(
            f"{saved.path} has no learned temperature: it was saved under another curriculum.temp_schedule; resume "
            "with that, or start a new run"
        )
    try:
        learned.load_state_dict(saved.state[LEARNED])
    except ValueError as error:
        raise checkpoint.CheckpointError(f"{saved.path} does not fit this run: {error}") from None
