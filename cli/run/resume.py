"""Going on where a checkpoint was saved: what was trained, and what the plan follows."""

from __future__ import annotations

from collections.abc import Callable

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
_FEED_THE_PLAN = {"seed", "data.batch_size", "trainer.epochs", *DATA}  # besides curriculum.*


def take_up(
    trainer: Trainer,
    plan: Plan,
    run: Run,
    now: dict[str, str | None],
    is_first: bool,
    warn: Callable[[str], None],
) -> DrawCounts:
    """Puts `trainer` where the newest whole checkpoint was saved; all ranks take the one that rank 0 finds.

    A learned temperature of `plan` as well. Returns how often each sample had been drawn by then.

    Raises CheckpointError when it does not fit, or its data or plan were others and that is not allowed.
    """

    def tell(line: str) -> None:
        if line not in run.told:
            warn(line)

    saved = checkpoint.newest(run.checkpoints, checkpoint.load, tell) if is_first else None
    step = from_first(int(saved.path.name) if saved else 0)
    saved = saved or checkpoint.load(run.checkpoints / f"{step:08d}")
    then = saved.meta["fingerprints"]
    for what in DATA:
        if then[what] != now[what] and what not in run.allowed:
            raise checkpoint.CheckpointError(
                f"the {what} changed since {saved.path} was saved (fingerprint {then[what]}, now {now[what]}); restore "
                f"the data, start a new run, or give --allow-change {what}"
            )
    if plan.learned:  # first: what a window is follows from it
        _take_up_temperature(plan.learned, saved)
    window = saved.meta["window"]
    feeds_the_plan = any(name.startswith("curriculum.") or name in _FEED_THE_PLAN for name in run.allowed)
    if not feeds_the_plan and plan.window(window["number"]).digest != window["digest"]:
        raise checkpoint.CheckpointError(
            f"window {window['number']} of {saved.path} was drawn otherwise than it is here; resume with the same "
            "shards and versions of mimcl and numpy, on the same kind of processor"
        )
    try:
        trainer.load(saved.tensors, saved.state)
    except (RuntimeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise checkpoint.CheckpointError(f"{saved.path} does not fit the model of this run: {reason[:300]}") from None
    if trainer.position > plan.draws:
        raise ConfigError(
            f"trainer.epochs: this run would end at draw {plan.draws:,}, but it is at draw {trainer.position:,}"
        )
    counts = saved.state["draw_counts"].numpy().view(np.uint32)
    return DrawCounts(counts if len(counts) == plan.samples else np.zeros(plan.samples, np.uint32))


def _take_up_temperature(learned: LearnedTemperature, saved: checkpoint.Checkpoint) -> None:
    if LEARNED not in saved.state:
        raise checkpoint.CheckpointError(
            f"{saved.path} has no learned temperature: it was saved under another curriculum.temp_schedule; go on with "
            "that, or start a new run"
        )
    try:
        learned.load_state_dict(saved.state[LEARNED])
    except ValueError as error:
        raise checkpoint.CheckpointError(f"{saved.path} does not fit this run: {error}") from None
