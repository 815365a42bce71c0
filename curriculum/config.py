"""Configuration of the curriculum over the data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar, get_args, get_type_hints

from mimcl.curriculum.resolution import EFFICIENT, parse_stages

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

Distances = TypeVar("Distances", "NDArray[np.float32]", "NDArray[np.float64]", "np.float32", "Tensor")


@dataclass(frozen=True)
class CurriculumConfig:
    """The curriculum over the data. Raises ValueError for a value that no run can use."""

    name: Annotated[
        Literal["none", "proto", "anti", "subset"],
        "Images to draw first: typical (proto), atypical (anti) or random ones (subset).",
    ] = "none"
    prototypes: Annotated[
        str, "Prototype set with the distances: its name beside the shards, or its folder, with a /."
    ] = "default"
    temp_schedule: Annotated[
        Literal["cosine", "linear", "exponential", "step", "constant", "learned"],
        "How the temperature rises over the curriculum.",
    ] = "cosine"
    r0: Annotated[float, "Effective fraction at the start, above 0 and below 0.632."] = 0.15
    share: Annotated[float, "Share of the run's draws that belong to the curriculum, 0 to 1."] = 1.0
    temperature: Annotated[float, "Temperature of the constant schedule.", "distance"] = 0.2
    learned_eta: Annotated[float, "Learned schedule: step size of the log temperature, once per window."] = 0.03
    learned_beta: Annotated[float, "Learned schedule: weight of the entropy relative to the loss."] = 0.15
    learned_may_fall: Annotated[bool, "Learned schedule: let it lower the temperature too."] = False
    resampling: Annotated[
        Literal["multinomial", "systematic"], "How a window draws: independently, or evenly spaced."
    ] = "multinomial"
    balance: Annotated[bool, "Give every cluster of the prototype set the same share of the draws."] = False
    uniform: Annotated[
        Literal["epochs", "replacement"],
        "Draws without a curriculum, and after it: every image once per epoch, or with replacement.",
    ] = "epochs"
    resolution: Annotated[
        str | None,
        "Side of the crops over the run, such as 112:0.4,160:0.3,224; or efficient; null: always data.image_size.",
        "pixels",
    ] = None
    order: Annotated[
        Literal["auto", "random", "shard"],
        "Order of the draws in a window; shard makes reads sequential; auto is shard where a server limits requests.",
    ] = "auto"
    slice: Annotated[float, "Length of a window, above 0 and at most 1.", "epochs"] = 1 / 16
    window: Annotated[
        int | None,
        "Length of a window; null: batch_size * max(4, ceil(slice * samples / batch_size)).",
        "draws",
    ] = None

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for knob in ("name", "temp_schedule", "resampling", "uniform", "order"):
            allowed = get_args(hints[knob])
            if getattr(self, knob) not in allowed:
                raise ValueError(f"curriculum.{knob} is {getattr(self, knob)!r}; choose one of {', '.join(allowed)}")
        if not 0 < self.r0 < 1 - math.exp(-1):
            raise ValueError(
                f"curriculum.r0 is {self.r0}; choose a fraction above 0 and below 0.632 (all images equally likely)"
            )
        if not 0 <= self.share <= 1:
            raise ValueError(f"curriculum.share is {self.share}; choose a share of the run from 0 to 1")
        if not self.temperature > 0:
            raise ValueError(f"curriculum.temperature is {self.temperature}; choose a number above 0, such as 0.2")
        for knob in ("learned_eta", "learned_beta"):
            if not 0 < getattr(self, knob) < math.inf:
                raise ValueError(f"curriculum.{knob} is {getattr(self, knob)}; choose a number above 0, such as 0.1")
        if not 0 < self.slice <= 1:
            raise ValueError(f"curriculum.slice is {self.slice}; choose epochs above 0, at most 1, such as 0.0625")
        if self.balance and self.temp_schedule == "learned":
            raise ValueError(
                "curriculum.balance cannot be combined with --temp-schedule learned; choose another schedule"
            )
        if self.name == "subset" and (self.balance or self.temp_schedule == "learned"):
            other = "balance" if self.balance else "--temp-schedule learned"
            raise ValueError(f"curriculum.name is 'subset', a random subset, on which {other} has no effect")
        if self.resolution not in (None, EFFICIENT):
            parse_stages(self.resolution)
        if self.window is not None and self.window <= 0:
            raise ValueError(f"curriculum.window is {self.window}; choose a positive number of draws, or leave it out")

    @property
    def has_prototypes(self) -> bool:
        """Whether it needs a prototype set."""
        return self.name in ("proto", "anti")

    @property
    def learns(self) -> bool:
        """Whether the temperature is learned from the losses."""
        return self.name != "none" and self.temp_schedule == "learned"

    def window_length(self, samples: int, batch_size: int) -> int:
        """Length of a window, W draws. Raises ValueError unless W is a multiple of the batch, 4 or more if learned."""
        length = self.window or batch_size * max(4, math.ceil(self.slice * samples / batch_size))
        if length % batch_size:
            raise ValueError(
                f"curriculum.window is {length} draws; choose a multiple of data.batch_size ({batch_size})"
            )
        if self.learns and length < 4 * batch_size:
            raise ValueError(
                f"curriculum.window is {length} draws; --temp-schedule learned needs at least 4 batches "
                f"({4 * batch_size}); raise it, or leave it out"
            )
        return length

    def hardness(self, distances: Distances) -> Distances:
        """Hardness h of distances in [0, 1], same shape; 0 = drawn first."""
        return 1 - distances if self.name == "anti" else distances
