"""Builds the `Plan` of draws that a training follows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mimcl.curriculum.balance import Balance
from mimcl.curriculum.config import CurriculumConfig
from mimcl.curriculum.learned_temperature import LearnedTemperature
from mimcl.curriculum.moving_scores import MovingScores
from mimcl.curriculum.plan import Plan
from mimcl.curriculum.schedules import Schedule
from mimcl.pipeline.augment import hash64


def build_plan(
    curriculum: CurriculumConfig,
    *,
    samples: int,
    draws: int,
    batch_size: int,
    seed: int,
    distances: NDArray[np.float32] | None = None,
    shards: NDArray[np.int32] | None = None,
    warmup_draws: int = 0,
    balance: Balance | None = None,
    scores: MovingScores | None = None,
    schedule: Schedule | None = None,
) -> Plan:
    """Return the plan of a run of `draws` draws from `samples` images, with the program's own source of randomness.

    `distances` (N,) are needed by a curriculum, unless there are `scores`; `shards` (N,) by order "shard". A learned
    temperature does not move within the first `warmup_draws`. `schedule` replaces the configured one. Raises ValueError
    for values that do not go together.
    """
    learned = None
    if curriculum.learns:
        if distances is None:
            raise ValueError("curriculum.temp_schedule is 'learned': the plan needs the distances of a prototype set")
        learned = LearnedTemperature(curriculum, distances, batch_size=batch_size, warm=warmup_draws)
    return Plan(
        curriculum,
        samples=samples,
        distances=distances,
        draws=draws,
        batch_size=batch_size,
        seed=seed,
        hash64=hash64,
        learned=learned,
        shards=shards,
        balance=balance,
        scores=scores,
        schedule=schedule,
    )
