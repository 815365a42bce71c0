"""Options shared by `mimcl eval`, `mimcl embed` and `mimcl predict`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

import typer

from mimcl.cli.errors import ConfigError
from mimcl.pipeline.data_config import DataConfig, DecoderName

PoolName = Literal["mean", "cls"]  # of a feature: mean of the patch tokens, or the CLS token
PrecisionName = Literal["auto", "bfloat16", "float32"]
SplitName = Literal["train", "val"]
NEIGHBOURS, SHOTS, SEEDS = 20, (1, 5, 10), 5  # of knn; of few-shot
QUERIES = 32  # of attentive
LIDAR_IMAGES, LIDAR_VIEWS = 1000, 50  # the paper's
EVALUATIONS = (
    "knn",
    "linear",
    "attentive",
    "few-shot",
    "rank",
)  # of `mimcl compare`; the lines that they write have _ instead of -
LABEL_FREE = ("rank",)  # those of them that use train images without their labels

Checkpoint = Annotated[
    Path,
    typer.Argument(
        metavar="RUN_OR_CHECKPOINT",
        help="runs/NAME, one of its checkpoints, or weights in the layout of MAE, timm or Hugging Face.",
    ),
]
Data = Annotated[str | None, typer.Option(help="Folder or URL of shards.", show_default="the run's")]
Pool = Annotated[PoolName, typer.Option(help="Which feature to take: mean of the patch tokens, or CLS token.")]
MaxBad = Annotated[
    float,
    typer.Option(
        min=0, max=1, help="Share of a split's images that may be bad, and are skipped; 10 are always allowed."
    ),
]
Decoder = Annotated[DecoderName, typer.Option(help="Image decoder.")]
Cache = Annotated[
    bool,
    typer.Option("--cache/--no-cache", help="Keep the features in RUN/evaluation/features for the next evaluation."),
]


@dataclass(frozen=True)
class FeatureOptions:
    """How features are extracted, and whether they are kept for the next evaluation."""

    pool: PoolName = "mean"
    decoder: DecoderName = "auto"
    cache: bool = True
    max_bad: float = DataConfig.max_bad  # share of a split's images that may be bad; 10 are always allowed

    def __post_init__(self) -> None:
        if self.pool not in ("mean", "cls"):
            raise ConfigError(f"--pool is {self.pool!r}; it must be mean or cls")
        if not 0 <= self.max_bad <= 1:
            raise ConfigError(f"--max-bad is {self.max_bad}; it must be from 0 to 1")
        if self.decoder not in get_args(DecoderName):
            raise ConfigError(f"--decoder is {self.decoder!r}; choose one of {', '.join(get_args(DecoderName))}")
