"""The `data` section of the configuration: where images are, and how they are read and decoded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

DecoderName = Literal["auto", "dali-gpu", "dali-cpu", "reference"]


_ALWAYS_ALLOWED = 10  # bad samples


def bad_allowed(max_bad: float, draws: int) -> float:
    """Return how many bad samples are allowed in so many draws, or images, where `max_bad` is their share."""
    return max(_ALWAYS_ALLOWED, max_bad * draws)


@dataclass(frozen=True)
class DataConfig:
    """Where the images are and how many are used at a time. Sizes in pixels and images."""

    root: str = "shards"
    decoder: DecoderName = "auto"
    image_size: int = 224
    batch_size: int = 4096
    micro_batch_size: int = 256
    decode_threads: int | None = None  # per machine, divided among its processes; None: by its cores
    prefetch: int = 4  # micro-batches made ahead
    stall_timeout: float = 600.0  # seconds without a micro-batch after which training fails
    max_bad: float = 0.001  # fraction of the draws so far that may be bad; 10 always may

    def __post_init__(self) -> None:
        for name in ("image_size", "batch_size", "micro_batch_size", "decode_threads", "prefetch"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"data.{name} is {value}; it must be at least 1")
        if not 0 < self.stall_timeout < math.inf:
            raise ValueError(f"data.stall_timeout is {self.stall_timeout}; it must be a number of seconds above 0")
        if not 0 <= self.max_bad <= 1:
            raise ValueError(f"data.max_bad is {self.max_bad}; it must be a share from 0 to 1")
