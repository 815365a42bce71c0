"""What a comparison is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from mimcl.cli.errors import ConfigError

Budget = Literal["samples", "time"]


@dataclass(frozen=True)
class CompareConfig:
    """A comparison; `arms` are names with settings, as parsed by cli/compare/arms.py, and the first is the baseline.

    Raises ConfigError.
    """

    recipe: str
    arms: Mapping[str, Mapping[str, Any]]
    seeds: int = 3
    budget: Budget = "samples"
    settings: Mapping[str, Any] = field(default_factory=dict)  # dotted keys, for all arms
    out: Path | None = None
    evaluations: Sequence[str] = ("knn",)
    processes: int = 1

    def __post_init__(self) -> None:
        for flag, number in (("--seeds", self.seeds), ("--processes", self.processes)):
            if number < 1:
                raise ConfigError(f"{flag} is {number}; it must be at least 1")
        if self.budget not in get_args(Budget):
            raise ConfigError(f"--budget is {self.budget!r}; choose one of {', '.join(get_args(Budget))}")
