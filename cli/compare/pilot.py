"""Measure the time per step with a short run, to give arms equal training time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

WARM_STEPS, STEPS = 10, 40  # steps that are not measured, and all steps of a pilot run


def seconds_per_step(folder: Path) -> float:
    """Return the time per step of a pilot run, data loading included. Raises DataError without metrics.

    Where a resolution curriculum changes the side of the crops, it is the mean over all steps of the time at their
    side, which is measured without the first step at that side.
    """
    import numpy as np

    from mimcl.cli.report.read import read_run

    record = read_run(folder)
    seconds, step = np.diff(record.seconds, prepend=0.0), record.steps["step"]
    total = 0.0
    sides = np.nan_to_num(record.steps["image_size"])  # unknown where it is the same throughout
    for side in np.unique(sides):
        here = sides == side
        warm = here & (step > WARM_STEPS)
        warm[np.flatnonzero(here)[0]] = False
        counted = warm if warm.any() else here
        total += here.sum() * seconds[counted].mean()
    return float(total / len(step))


def pilot_settings(batch_size: int, samples: int) -> dict[str, float | int | None]:
    """Return a pilot run's settings besides its arm's: its length, a log line a step, and no extras."""
    return {
        "trainer.epochs": STEPS * batch_size / samples,
        "trainer.log_every_steps": 1,
        "trainer.checkpoint_every_steps": 10 * STEPS,
        "trainer.online_knn_epochs": 0.0,
        "trainer.online_rank_epochs": 0.0,
        "log.wandb": None,
        "log.mlflow": None,
    }


def equal_time(epochs: float, seconds: Mapping[str, float], arms: Sequence[str]) -> dict[str, float]:
    """Return epochs for each arm that take as long as `epochs` of the first arm, rounded to 0.001 epochs."""
    return {arm: max(0.001, round(epochs * seconds[arms[0]] / seconds[arm], 3)) for arm in arms}
