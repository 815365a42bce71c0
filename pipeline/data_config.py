"""The `data` section of the configuration: where images are, and how they are read and decoded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

DecoderName = Literal["auto", "dali-gpu", "dali-cpu", "reference"]


_ALWAYS_ALLOWED = 10  # bad samples


def bad_allowed(max_bad: float, draws: int) -> float:
    """Return how many bad samples are allowed in so many draws, or images, where `max_bad` is their share."""
    return max(_ALWAYS_ALLOWED, max_bad * draws)


@dataclass(frozen=True)
class DataConfig:
    """Where the images are and how many are used at a time. Sizes in pixels and images."""

    root: Annotated[str, "Folder or URL of the shards."] = "shards"
    decoder: Annotated[DecoderName, "Image decoder."] = "auto"
    image_size: Annotated[int, "Side of the square crops.", "pixels"] = 224
    batch_size: Annotated[int, "Images per step, over all processes.", "images"] = 4096
    micro_batch_size: Annotated[int, "Maximum number of images that a process computes at once.", "images"] = 256
    decode_threads: Annotated[
        int | None,
        "Decoding threads of a machine, divided among its processes; null: from the number of cores.",
        "threads",
    ] = None
    scaled_decode: Annotated[
        bool, "Decode JPEGs at 1/4 or 1/8 where a crop is large enough; changes pixels a little; not on a GPU."
    ] = False
    keep_decoded: Annotated[
        bool, "Decode all images once, like the reference, and keep them in memory, on the GPU if there is one."
    ] = False
    prefetch: Annotated[int, "Number of micro-batches that are prefetched.", "micro-batches"] = 4
    stall_timeout: Annotated[
        float, "Abort after this long without data, or without an answer of another process.", "seconds"
    ] = 600.0
    max_bad: Annotated[float, "Share of the draws so far that may be bad samples; 10 are always allowed."] = 0.001

    def __post_init__(self) -> None:
        for name in ("image_size", "batch_size", "micro_batch_size", "decode_threads", "prefetch"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"data.{name} is {value}; it must be at least 1")
        if self.scaled_decode and self.keep_decoded:
            raise ValueError("data.scaled_decode has no effect on images that data.keep_decoded keeps; leave one out")
        if not 0 < self.stall_timeout < math.inf:
            raise ValueError(f"data.stall_timeout is {self.stall_timeout}; it must be a number of seconds above 0")
        if not 0 <= self.max_bad <= 1:
            raise ValueError(f"data.max_bad is {self.max_bad}; it must be a share from 0 to 1")
