"""The settings of packing."""

from __future__ import annotations

from dataclasses import dataclass, field

from mimcl.pipeline.cores import worker_count

_MB_PER_WORKER = 1000  # below, starting another process takes longer than it saves
_MB_PER_DECODING_WORKER = 20


@dataclass(frozen=True)
class PackConfig:
    """Settings of packing; all but `workers` and `cores` determine the bytes that are written.

    `shard_mb` is in 10^6 bytes, `short_side` in pixels (0 keeps the original bytes). `decode` decodes every image to
    check it. `dedup` skips items with the same bytes as an earlier one of their split. `workers` are processes;
    None: at most one per core of `cores`, fewer for little data.
    """

    shard_mb: int = 256
    short_side: int = 0
    workers: int | None = None
    decode: bool = False
    dedup: bool = False
    cores: int = field(default_factory=worker_count)

    def __post_init__(self) -> None:
        for name, least in (("shard_mb", 1), ("short_side", 0), ("workers", 1), ("cores", 1)):
            if (value := getattr(self, name)) is not None and value < least:
                raise ValueError(f"{name} is {value}; it must be at least {least}")

    def workers_for(self, nbytes: int) -> int:
        """Return the number of processes that pack so many bytes."""
        per_worker = _MB_PER_DECODING_WORKER if self.decode or self.short_side else _MB_PER_WORKER
        return self.workers or max(1, min(self.cores, nbytes // (per_worker * 10**6)))
