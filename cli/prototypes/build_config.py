"""How a prototype set is built."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mimcl.cli.errors import ConfigError
from mimcl.pipeline.data_config import DataConfig, DecoderName
from mimcl.pipeline.prototype_location import is_set_name


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
    max_bad: float = DataConfig.max_bad  # share of the images that may be bad; 10 always may

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
                f"--sample is {self.sample}, less than --k {self.k}; give at least as many, better 40 times"
            )
