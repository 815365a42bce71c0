"""What can be chosen about the curriculum over the data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args, get_type_hints

Distances = TypeVar("Distances")  # an array or a tensor


@dataclass(frozen=True)
class CurriculumConfig:
    """The curriculum over the data; raises ValueError for a value that no run could use."""

    name: Literal["none", "proto", "anti"] = "none"  # anti draws far images first
    prototypes: str = "default"  # name of the prototype set that gives the distances
    temp_schedule: Literal["cosine", "linear", "exponential", "step", "constant", "learned"] = "cosine"
    r0: float = 0.15  # effective fraction at the start
    share: float = 1.0  # of the run's draws that the curriculum lasts
    temperature: float = 0.2  # of the constant schedule
    learned_eta: float = 0.03  # of the learned schedule: how far log temperature moves a window, times the gradient
    learned_beta: float = 0.15  # of the learned schedule: what entropy is worth beside the relative loss
    learned_may_fall: bool = False  # the learned schedule may lower the temperature as well
    resampling: Literal["multinomial", "systematic"] = "multinomial"
    uniform: Literal["epochs", "replacement"] = "epochs"  # after the curriculum: every image once a pass, or i.i.d.
    order: Literal["random", "shard"] = "random"  # of a window's draws: shard by shard, they are read in order
    slice: float = 1 / 16  # length of a window, in epochs: the larger, the more of what is read in order is adjacent
    window: int | None = None  # its length in draws; None: batch_size * max(4, ceil(slice * samples / batch_size))

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for knob in ("name", "temp_schedule", "resampling", "uniform", "order"):
            allowed = get_args(hints[knob])
            if getattr(self, knob) not in allowed:
                raise ValueError(f"curriculum.{knob} is {getattr(self, knob)!r}: choose one of {', '.join(allowed)}")
        if not 0 < self.r0 < 1 - math.exp(-1):
            raise ValueError(
                f"curriculum.r0 is {self.r0}: choose a fraction above 0 and below 0.632, which is all data"
            )
        if not 0 <= self.share <= 1:
            raise ValueError(f"curriculum.share is {self.share}: choose a share of the run from 0 to 1")
        if not self.temperature > 0:
            raise ValueError(f"curriculum.temperature is {self.temperature}: choose a number above 0, such as 0.2")
        for knob in ("learned_eta", "learned_beta"):
            if not 0 < getattr(self, knob) < math.inf:
                raise ValueError(f"curriculum.{knob} is {getattr(self, knob)}: choose a number above 0, such as 0.1")
        if not 0 < self.slice <= 1:
            raise ValueError(f"curriculum.slice is {self.slice}: choose epochs above 0, at most 1, such as 0.0625")
        if self.window is not None and self.window <= 0:
            raise ValueError(f"curriculum.window is {self.window}: choose a positive number of draws, or leave it out")

    @property
    def learns(self) -> bool:
        """Whether the temperature follows from the losses."""
        return self.name != "none" and self.temp_schedule == "learned"

    def window_length(self, samples: int, batch_size: int) -> int:
        """W, in draws. Raises ValueError unless it is whole batches, at least 4 for the learned schedule."""
        length = self.window or batch_size * max(4, math.ceil(self.slice * samples / batch_size))
        if length % batch_size:
            raise ValueError(
                f"curriculum.window is {length} draws: choose a multiple of data.batch_size ({batch_size})"
            )
        if self.learns and length < 4 * batch_size:
            raise ValueError(
                f"curriculum.window is {length} draws: --temp-schedule learned needs 4 batches, {4 * batch_size}, or "
                "more; raise it, or leave it out"
            )
        return length

    def hardness(self, distances: Distances) -> Distances:
        """h of distances in [0, 1], of their shape: 0 = drawn first."""
        return 1 - distances if self.name == "anti" else distances
