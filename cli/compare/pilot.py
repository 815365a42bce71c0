"""Measure the time per step with a short run, to give arms equal training time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

WARM_STEPS, STEPS = 10, 40  # steps that are not measured, and all steps of a pilot run


def seconds_per_step(folder: Path) -> float:
    """Return the time per step of a pilot run, data loading included. Raises DataError without metrics."""
    from mimcl.cli.report.read import read_run

    record = read_run(folder)
    counted = record.steps["step"] > WARM_STEPS
    seconds = record.seconds[-1] - record.seconds[~counted][-1]
    return float(seconds / (record.steps["step"][-1] - WARM_STEPS))


def pilot_settings(batch_size: int, samples: int) -> dict[str, float | int | None]:
    """Return a pilot run's settings besides its arm's: its length, a log line after the warm-up, and no extras."""
    return {
        "trainer.epochs": STEPS * batch_size / samples,
        "trainer.log_every_steps": WARM_STEPS,
        "trainer.checkpoint_every_steps": 10 * STEPS,
        "trainer.online_knn_epochs": 0.0,
        "trainer.online_rank_epochs": 0.0,
        "log.wandb": None,
        "log.mlflow": None,
    }


def equal_time(epochs: float, seconds: Mapping[str, float], arms: Sequence[str]) -> dict[str, float]:
    """Return epochs for each arm that take as long as `epochs` of the first arm, rounded to 0.001 epochs."""
    return {arm: max(0.001, round(epochs * seconds[arms[0]] / seconds[arm], 3)) for arm in arms}
