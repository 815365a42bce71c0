"""The resolution curriculum: crops are small at first, and of full size at the end of the run.

A draw keeps its crop, of which there are fewer pixels. Written as stages SIDE:SHARE, separated by commas, with the
sides in pixels and the shares of the run's draws; the last stage is the rest of the run.
"""

from __future__ import annotations

import math
from bisect import bisect
from dataclasses import dataclass, replace

EFFICIENT = "efficient"
# EfficientTrain++ (Wang et al., TPAMI 2024, arXiv 2405.08768): its published code trains DeiT-S at 96, 160, 192 and 224
# pixels for 0.2, 0.4, 0.2 and 0.2 of the compute. These are the same stages as shares of the side and of the draws; of
# the schedule for MAE there is no code.
_EFFICIENT = ((3 / 7, 0.46), (5 / 7, 0.34), (6 / 7, 0.12), (1.0, None))
_FEWEST = 2  # patches on a side
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Stage:
    """Consecutive steps with the same side, in pixels."""

    side: int
    first_draw: int
    draws: int


@dataclass(frozen=True)
class Resolution:
    """The sides of a run's crops: a pure function of the draw that a step begins at."""

    stages: tuple[Stage, ...]  # in their order; each has at least one step

    def side_at(self, draw: int) -> int:
        """Return the side in pixels of the images of the step that begins at `draw`."""
        return self.stages[bisect(self.stages, draw, key=lambda stage: stage.first_draw) - 1].side

    @property
    def changes(self) -> bool:
        """Whether there is more than one side."""
        return len(self.sides) > 1

    @property
    def sides(self) -> list[int]:
        """The sides that occur, ascending."""
        return sorted({stage.side for stage in self.stages})


def resolution(text: str | None, image_size: int, patch_size: int, draws: int, batch_size: int) -> Resolution:
    """Return the stages of a run of `draws` draws; `text` None: all of them at `image_size` pixels.

    A stage begins at the step that is nearest to its share, and one that is shorter than half a step is skipped;
    consecutive stages of the same side are joined. Raises ValueError for a text that is not a schedule, and for sides
    that do not fit the model.
    """
    steps, start, end = draws // batch_size, 0, 0.0
    stages: list[Stage] = []
    for side, share in _sides(text, image_size, patch_size):
        end = 1.0 if share is None else end + share
        until = math.floor(end * steps + 0.5)
        if until > start:
            joined = stages.pop() if stages and stages[-1].side == side else Stage(side, start * batch_size, 0)
            stages.append(replace(joined, draws=until * batch_size - joined.first_draw))
            start = until
    return Resolution(tuple(stages))


def parse_stages(text: str) -> list[tuple[int, float | None]]:
    """Return the sides and shares of a written schedule; a share is None only where it is the rest of the run.

    Raises ValueError for a text that is not a schedule.
    """
    wrong = f"curriculum.resolution is {text!r}; "
    parts = [part.strip().partition(":") for part in text.split(",")]
    try:
        stages = [(int(side), float(share) if colon else None) for side, colon, share in parts]
    except ValueError:
        raise ValueError(f"{wrong}write it like 112:0.4,160:0.3,224 (SIDE:SHARE,...,SIDE), or {EFFICIENT}") from None
    if any(side < 1 for side, _ in stages):
        raise ValueError(f"{wrong}sides must be whole numbers of pixels, at least 1")
    shares = [share for _, share in stages[:-1]]
    if any(share is None or not 0 < share < 1 for share in shares):
        raise ValueError(f"{wrong}every side but the last needs a share of the run, above 0 and below 1")
    total, last = sum(share for share in shares if share is not None), stages[-1][1]
    if last is not None and abs(total + last - 1) > _ROUNDING:
        raise ValueError(f"{wrong}the shares add up to {total + last:g}; they must add up to 1, or leave out the last")
    if total >= 1:
        raise ValueError(f"{wrong}the shares add up to {total:g}, which leaves nothing for the last side")
    return [*stages[:-1], (stages[-1][0], None)]


def _sides(text: str | None, image_size: int, patch_size: int) -> list[tuple[int, float | None]]:
    """Return the stages of a run, checked against the sizes of its model."""
    if text is None:
        return [(image_size, None)]
    if text == EFFICIENT:
        patches = image_size // patch_size
        rounded = [max(min(_FEWEST, patches), round(part * patches)) * patch_size for part, _ in _EFFICIENT]
        return [(side, share) for side, (_, share) in zip(rounded, _EFFICIENT, strict=True)]
    stages = parse_stages(text)
    for side, _ in stages:
        if side % patch_size:
            raise ValueError(f"curriculum.resolution has {side}, not a multiple of model.patch_size ({patch_size})")
    if stages[-1][0] != image_size or any(side > image_size for side, _ in stages):
        raise ValueError(
            f"curriculum.resolution is {text!r}; it must end with data.image_size ({image_size}), its largest side; "
            f"change it, or give --image-size {stages[-1][0]}"
        )
    return stages
