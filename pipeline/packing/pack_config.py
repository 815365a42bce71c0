"""The settings of packing."""

from __future__ import annotations

from dataclasses import dataclass, field

from mimcl.pipeline.cores import worker_count


@dataclass(frozen=True)
class PackConfig:
    """Settings of packing; all but `workers` determine the bytes that are written.

    `shard_mb` is in 10^6 bytes, `short_side` in pixels (0 keeps the original bytes). `decode` decodes every image to
    check it. `dedup` leaves out items with the same bytes as an earlier one of their split. `workers` are processes.
    """

    shard_mb: int = 256
    short_side: int = 0
    workers: int = field(default_factory=worker_count)
    decode: bool = False
    dedup: bool = False

    def __post_init__(self) -> None:
        for name, least in (("shard_mb", 1), ("short_side", 0), ("workers", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
