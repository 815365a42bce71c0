"""How long a step takes, measured by a short run: what equal training time is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

WARM_STEPS, STEPS = 10, 40  # a pilot's length, and how many of its first steps do not count


def seconds_per_step(folder: Path) -> float:
    """Of the pilot run in `folder`, loading included. Raises DataError for a run without figures."""
    from mimcl.cli.report.read import read_run

    record = read_run(folder)
    counted = record.steps["step"] > WARM_STEPS
    took = record.seconds[-1] - record.seconds[~counted][-1]
    return float(took / (record.steps["step"][-1] - WARM_STEPS))


def pilot_settings(batch_size: int, samples: int) -> dict[str, float | int | None]:
    """What a pilot has besides its arm's settings: so short, a report when the first steps are done, nothing beside."""
    return {
        "trainer.epochs": STEPS * batch_size / samples,
        "trainer.log_every_steps": WARM_STEPS,
        "trainer.checkpoint_every_steps": 10 * STEPS,
        "trainer.online_knn_epochs": 0.0,
        "log.wandb": None,
        "log.mlflow": None,
    }


def equal_time(epochs: float, seconds: Mapping[str, float], arms: Sequence[str]) -> dict[str, float]:
    """Epochs of each arm for as much time as the first one takes for `epochs`, to a thousandth of an epoch."""
    return {arm: max(0.001, round(epochs * seconds[arms[0]] / seconds[arm], 3)) for arm in arms}
