"""What a comparison is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Budget = Literal["samples", "time"]


@dataclass(frozen=True)
class CompareConfig:
    """A comparison; `arms` are names with settings, as parsed by cli/compare/arms.py, and the first is the baseline."""

    recipe: str
    arms: Mapping[str, Mapping[str, Any]]
    seeds: int = 3
    budget: Budget = "samples"
    settings: Mapping[str, Any] = field(default_factory=dict)  # dotted keys, for all arms
    out: Path | None = None
    evaluations: Sequence[str] = ("knn",)
    processes: int = 1
