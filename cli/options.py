"""Options that several commands share, and the configuration keys that they set."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

RecipeName = Literal["auto", "mae_b16", "mae_l16", "mae_h14", "cifar_tiny", "cpu_small"]
CurriculumName = Literal["none", "proto", "anti"]


class TempSchedule(StrEnum):
    """Temperature schedules; an Enum, since typer takes no list of Literals."""

    COSINE = "cosine"
    LINEAR = "linear"
    EXPONENTIAL = "exponential"
    STEP = "step"
    CONSTANT = "constant"
    LEARNED = "learned"


Recipe = Annotated[RecipeName | None, typer.Option(help="Configuration to start from.", show_default="auto")]
Data = Annotated[
    str | None,
    typer.Option(help="Folder of shards, or an s3://, gs://, hf:// or http(s):// URL.", show_default="shards"),
]
Prototypes = Annotated[
    str | None,
    typer.Option(
        metavar="SET",
        help="Prototype set: its name beside the shards, or its folder, with a /.",
        show_default="default",
    ),
]
Curriculum = Annotated[
    CurriculumName | None,
    typer.Option(help="Data curriculum: proto draws typical images first, anti atypical ones.", show_default="none"),
]
R0 = Annotated[
    float | None, typer.Option(help="Effective fraction at the start, above 0 and below 0.632.", show_default="0.15")
]
CurriculumShare = Annotated[
    float | None, typer.Option(help="Share of the run that the curriculum lasts, 0 to 1.", show_default="1")
]
Temperature = Annotated[
    float | None,
    typer.Option(help="Temperature of --temp-schedule constant, in units of distance.", show_default="0.2"),
]
Resampling = Annotated[
    Literal["multinomial", "systematic"] | None,
    typer.Option(help="How a window draws: independently, or evenly spaced.", show_default="multinomial"),
]
Order = Annotated[
    Literal["auto", "random", "shard"] | None,
    typer.Option(
        help="Order of the draws in a window; shard makes reads sequential.",
        show_default="auto: shard for hf://, or random",
    ),
]
Slice = Annotated[
    float | None,
    typer.Option("--slice", help="Length of a window in epochs, above 0 and at most 1.", show_default="0.0625"),
]
Epochs = Annotated[
    float | None,
    typer.Option(
        help="Length of the run; an epoch has as many draws as there are images.", show_default="the recipe's"
    ),
]
ConfigFile = Annotated[Path | None, typer.Option(help="YAML file with values, such as a run's config.yaml.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set any value, as section.key=value; config.yaml lists all."),
]

CONFIG_KEYS = {  # by parameter
    "data": "data.root",
    "decoder": "data.decoder",
    "max_bad": "data.max_bad",
    "stall_timeout": "data.stall_timeout",
    "curriculum": "curriculum.name",
    "prototypes": "curriculum.prototypes",
    "temp_schedule": "curriculum.temp_schedule",
    "r0": "curriculum.r0",
    "curriculum_share": "curriculum.share",
    "temperature": "curriculum.temperature",
    "resampling": "curriculum.resampling",
    "order": "curriculum.order",
    "slice_epochs": "curriculum.slice",
    "masking": "masking.name",
    "epochs": "trainer.epochs",
    "online_knn": "trainer.online_knn_epochs",
    "use_compile": "trainer.compile",
    "max_nonfinite": "trainer.max_nonfinite",
    "wandb": "log.wandb",
    "mlflow": "log.mlflow",
    "seed": "seed",
    "init": "init",
}


def config_values(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the dotted keys that a command line sets: --set wins over flags, and flags over the file of --config.

    `parameters` are the command's, by name, as typer's context has them. Raises ConfigError.
    """
    from mimcl.cli.config import parse_settings, read_yaml

    config, settings = parameters["config"], parameters["settings"]
    values = read_yaml(config) if config else {}
    for name, key in CONFIG_KEYS.items():
        if (value := parameters.get(name)) is not None:
            values[key] = value.value if isinstance(value, StrEnum) else value
    return values | parse_settings(settings or [])
