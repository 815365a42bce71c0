"""How a prototype set is built."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mimcl.cli.errors import ConfigError
from mimcl.pipeline.data_config import DataConfig, DecoderName
from mimcl.pipeline.prototype_location import is_set_name

LOSS = "loss:"  # a difficulty: the reconstruction loss of the checkpoint that follows
_OF_CLUSTERS = ("features", "k", "levels", "min_cluster", "singletons", "sample", "precision")  # without use to a loss


@dataclass(frozen=True)
class BuildConfig:
    """How to build a set; `k` None chooses K, `sample` is the maximum number of images for k-means.

    Raises ConfigError.
    """

    features: str = "auto"
    k: int | None = None
    name: str = "default"
    seed: int = 0
    min_cluster: int = 3
    singletons: Literal["far", "near"] = "far"
    decoder: DecoderName = "auto"
    overwrite: bool = False
    sample: int = 1 << 18
    out: Path | None = None  # folder of the set; None: `name`, beside the shards
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # of timm features; auto: bfloat16 if fast here
    max_bad: float = DataConfig.max_bad  # share of the images that may be bad; 10 are always allowed
    levels: int = 1  # 2: the clusters are grouped too, for a balance over two levels
    difficulty: str = "distance"  # to the own prototype, or loss:CHECKPOINT, for which nothing is clustered

    def __post_init__(self) -> None:
        for name, least in (("min_cluster", 1), ("sample", 2)):
            if getattr(self, name) < least:
                raise ConfigError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be at least {least}")
        if not 0 <= self.max_bad <= 1:
            raise ConfigError(f"--max-bad is {self.max_bad}; it must be from 0 to 1")
        if self.k is not None and self.k < 1:
            raise ConfigError(f"--k is {self.k}; give a whole number above 0, or auto")
        if not re.fullmatch(r"auto|sift|pixels|timm:[^@]+(@.+)?|mae:.+", self.features):
            raise ConfigError(
                f"--features is {self.features!r}; give auto, sift, pixels, timm:MODEL, timm:MODEL@FILE or "
                "mae:CHECKPOINT"
            )
        if not is_set_name(self.name):
            raise ConfigError(f"--name is {self.name!r}; use letters, digits, dots, - and _")
        if self.k and self.k > self.sample:
            raise ConfigError(
                f"--sample is {self.sample}, less than --k {self.k}; give at least as many, ideally 40 times as many"
            )
        if self.levels not in (1, 2):
            raise ConfigError(f"--levels is {self.levels}; it must be 1 or 2")
        if self.k and self.k < self.fewest_clusters:
            raise ConfigError(f"--k is {self.k}, too few clusters for --levels 2; give {self.fewest_clusters} or more")
        if self.difficulty != BuildConfig.difficulty:
            self._require_loss()

    @property
    def fewest_clusters(self) -> int:
        """The lowest K that can have so many levels."""
        return 4 if self.levels > 1 else 1

    @property
    def scored_by(self) -> Path | None:
        """The run, checkpoint or file of weights whose loss is the difficulty, if it is one."""
        return Path(self.difficulty.removeprefix(LOSS)) if self.difficulty.startswith(LOSS) else None

    def _require_loss(self) -> None:
        if not self.difficulty.startswith(LOSS) or self.difficulty == LOSS:
            raise ConfigError(f"--difficulty is {self.difficulty!r}; give distance or loss:CHECKPOINT")
        unused = [name for name in _OF_CLUSTERS if getattr(self, name) != getattr(BuildConfig, name)]
        if unused:
            raise ConfigError(
                f"--{unused[0].replace('_', '-')} is for prototypes, and --difficulty {self.difficulty} makes none; "
                "leave it out"
            )
