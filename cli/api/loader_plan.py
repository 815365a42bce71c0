"""The plan of a loader's draws, from what a program gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, get_args, get_type_hints

import numpy as np
from numpy.typing import NDArray

from mimcl.api.loader_state import digest_of_arrays, draws_depend_on
from mimcl.cli.errors import ConfigError
from mimcl.cli.plan.build_plan import build_plan
from mimcl.cli.run.resolve import resolved_order, whole_batches
from mimcl.cli.run.training_data import load_difficulty
from mimcl.curriculum.config import CurriculumConfig
from mimcl.curriculum.moving_scores import MovingScores
from mimcl.curriculum.plan import Plan
from mimcl.curriculum.schedules import Schedule, by_fraction, by_temperature
from mimcl.pipeline.index import ShardIndex

ENDLESS = 1 << 60  # draws or more
Progress = Callable[[float], float]  # a function of the progress in [0, 1]


@dataclass(frozen=True)
class LoaderPlan:
    """A plan, its scores if they may change, and all that its draws depend on besides."""

    plan: Plan
    scores: MovingScores | None
    depends_on: dict[str, Any]


def plan_loader(
    index: ShardIndex,
    batch_size: int,
    seed: int,
    epochs: float | None,
    curriculum: str | CurriculumConfig | None,
    schedule: str | Progress | None,
    temperature: float | Progress | None,
    scores: NDArray[np.float32] | None,
    order: str,
) -> LoaderPlan:
    """Plan the draws of a `Loader`, whose arguments these are.

    Raises ConfigError and ValueError for values that do not go together, PrototypeError and DataError.
    """
    config = _config(curriculum, schedule, temperature, scores is not None)
    if order != "auto":
        config = _with(config, order=order)
    config = resolved_order(config, index.shown if index.url is None else index.url)
    draws = 2 * ENDLESS // batch_size * batch_size
    if epochs is not None:
        if not epochs > 0:
            raise ConfigError(f"epochs is {epochs}; it must be above 0, or None for an endless loader")
        draws = whole_batches(epochs, index.samples, batch_size)
    elif config.resolution or (
        config.name != "none" and (config.temp_schedule != "constant" or callable(schedule) or callable(temperature))
    ):
        raise ConfigError("epochs is None, but a schedule needs the length of the run; give epochs")
    distances, balance, moving = None, None, None
    if config.name != "none" and (scores is None or config.balance):
        distances, balance = load_difficulty(config, index, seed)
        distances = distances if scores is None else None
    if scores is not None:
        moving = MovingScores(scores, config, samples=index.samples, batch_size=batch_size, balance=balance)
    plan = build_plan(
        config,
        samples=index.samples,
        draws=draws,
        batch_size=batch_size,
        seed=seed,
        distances=distances,
        shards=index.shard,
        balance=balance,
        scores=moving,
        schedule=_schedule(schedule, temperature),
    )
    functions = [given for given in (schedule, temperature) if callable(given)]
    set_digest = digest_of_arrays(distances, *((balance.cluster, balance.mass) if balance else ()))
    depends_on = draws_depend_on(plan, index, seed, batch_size, set_digest, functions, moving is not None)
    return LoaderPlan(plan, moving, depends_on)


def _config(
    curriculum: str | CurriculumConfig | None,
    schedule: str | Progress | None,
    temperature: float | Progress | None,
    has_scores: bool,
) -> CurriculumConfig:
    if curriculum is None:
        curriculum = "proto" if has_scores else "none"
    names = get_args(get_type_hints(CurriculumConfig)["name"])
    if isinstance(curriculum, str):
        if curriculum not in names:
            raise ConfigError(f"curriculum is {curriculum!r}; choose one of {', '.join(names)}, or give a Curriculum")
        curriculum = _with(CurriculumConfig(), name=curriculum)
    if curriculum.name == "subset" and has_scores:
        raise ConfigError("curriculum 'subset' draws random images and takes no scores; give 'proto' or 'anti'")
    if curriculum.name == "none":
        if has_scores or schedule is not None or temperature is not None:
            raise ConfigError(
                "curriculum is 'none', which has no scores, schedule or temperature; give 'proto' or 'anti'"
            )
        if curriculum.balance:
            raise ConfigError("curriculum is 'none', with which balance has no effect; give 'proto' or 'anti'")
        return curriculum
    if schedule is not None and temperature is not None:
        raise ConfigError("schedule and temperature are two ways to set the temperature; give one of them")
    if isinstance(schedule, str):
        curriculum = _with(curriculum, temp_schedule=schedule)
    if temperature is not None and not callable(temperature):
        curriculum = _with(curriculum, temp_schedule="constant", temperature=float(temperature))
    if curriculum.learns:
        raise ConfigError("the learned schedule needs mimcl's trainer; update_scores changes what a loader draws")
    return curriculum


def _with(curriculum: CurriculumConfig, **choices: Any) -> CurriculumConfig:
    """Return the curriculum with other choices, which it checks."""
    return replace(curriculum, **choices)


def _schedule(schedule: str | Progress | None, temperature: float | Progress | None) -> Schedule | None:
    if callable(schedule):
        return by_fraction(schedule)
    return by_temperature(temperature) if callable(temperature) else None
