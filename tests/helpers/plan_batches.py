"""Batches of a real plan, without reading images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch

from mimcl.curriculum.config import CurriculumConfig
from mimcl.curriculum.plan import Plan
from mimcl.pipeline.augment import hash64
from mimcl.pipeline.batch_shares import BatchShares
from mimcl.pipeline.stream import Batch
from mimcl.pipeline.substitutes import BadSample

SAMPLES, DRAWS = 50, 160


def make_plan(seed: int = 0) -> Plan:
    """Return a plan with windows of 64 draws, each with its own temperature."""
    distances = np.linspace(0, 1, SAMPLES, dtype=np.float32)
    return Plan(
        CurriculumConfig(name="proto", window=64),
        samples=SAMPLES,
        distances=distances,
        draws=DRAWS,
        batch_size=16,
        seed=seed,
        hash64=hash64,
    )


def bad_sample(draw: int, shard: str = "train-000000.tar") -> BadSample:
    return BadSample(draw, draw % 7, f"{draw % 7:09d}", shard, "its checksum differs")


def make_batches(
    plan: Plan,
    batch_size: int,
    micro_batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    bad: Mapping[int, tuple[BadSample, ...]] | None = None,
    start: int = 0,
) -> Iterator[list[Batch]]:
    """Yield the micro-batches of each step; `bad` are the bad samples by draw."""
    window = None
    for first in range(start, plan.draws, batch_size):
        if window is None or first % plan.window_length == 0:
            window = plan.window(first // plan.window_length)
        step = []
        for begin, end in BatchShares(batch_size, micro_batch_size, rank, world_size).micro_batches:
            draws = np.arange(first + begin, first + end)
            places = draws - window.first_draw
            step.append(
                Batch(
                    images=torch.zeros(len(draws), 3, 4, 4, dtype=torch.uint8),
                    draws=draws,
                    keys=torch.from_numpy(draws),
                    sample_ids=window.sample_ids[places],
                    labels=np.zeros(len(draws), np.int32),
                    distances=torch.from_numpy(window.distances[places]),
                    bad=tuple(sample for draw in draws.tolist() for sample in (bad or {}).get(draw, ())),
                    window=window,
                    read_stats=None,
                    position=first + batch_size,
                )
            )
        yield step
