"""The sides of a run's crops, where a resolution curriculum changes them, and what they cost."""

from __future__ import annotations

from mimcl.cli.config import Config
from mimcl.curriculum.resolution import Resolution, resolution
from mimcl.model.cost import gflop_per_draw

_LONG_RUN = 100_000  # steps


def resolution_of(config: Config, draws: int) -> Resolution:
    """Return the sides of a run of so many draws. Raises ValueError for sides that do not fit the model."""
    data, patch_size = config.data, config.model.patch_size
    return resolution(config.curriculum.resolution, data.image_size, patch_size, draws, data.batch_size)


def relative_cost(config: Config, side: int) -> float:
    """Return the operations of a draw at that side, as a share of those at full size; without those of a masker."""
    at_side, full = (
        gflop_per_draw(config.model, (pixels // config.model.patch_size) ** 2, config.masking.mask_ratio)
        for pixels in (side, config.data.image_size)
    )
    return at_side / full


def step_costs(config: Config, sides: Resolution) -> list[tuple[int, float]]:
    """Return the first step of each stage, from 0, and the relative cost of its steps."""
    return [(stage.first_draw // config.data.batch_size, relative_cost(config, stage.side)) for stage in sides.stages]


def total_cost(config: Config, sides: Resolution) -> float:
    """Return the operations of a run, as a share of those with every crop at full size."""
    draws = sum(stage.draws for stage in sides.stages)
    return sum(stage.draws * relative_cost(config, stage.side) for stage in sides.stages) / draws


def mean_gflop(config: Config) -> float:
    """Return the 10^9 operations of a draw on average over a long run; without those of a masker."""
    data, patches = config.data, (config.data.image_size // config.model.patch_size) ** 2
    full = gflop_per_draw(config.model, patches, config.masking.mask_ratio)
    return full * total_cost(config, resolution_of(config, _LONG_RUN * data.batch_size))


def resolution_line(config: Config, sides: Resolution) -> str:
    """Describe the stages and their cost in one line."""
    draws = sum(stage.draws for stage in sides.stages)
    stages = ", ".join(f"{stage.side} px for {stage.draws / draws:.0%}" for stage in sides.stages)
    return f"crops of {stages} of the run: {total_cost(config, sides):.0%} of the operations at {sides.sides[-1]} px"
