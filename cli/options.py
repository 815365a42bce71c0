"""Options that several commands share, and the configuration keys that they set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

Recipe = Annotated[
    str | None, typer.Option(help="auto, mae_b16, mae_l16, mae_h14, cifar_tiny or cpu_small. (default: auto)")
]
Data = Annotated[
    str | None, typer.Option(help="Folder of shards, or s3://, gs://, hf://, http(s)://. (default: shards)")
]
Curriculum = Annotated[
    str | None, typer.Option(help="none, proto (typical images first) or anti (far ones first). (default: none)")
]
R0 = Annotated[
    float | None, typer.Option(help="Effective fraction at the start, above 0 and below 0.632. (default: 0.15)")
]
CurriculumShare = Annotated[
    float | None, typer.Option(help="Share of the run that the curriculum lasts, 0 to 1. (default: 1.0)")
]
Temperature = Annotated[
    float | None, typer.Option(help="Temperature of --temp-schedule constant, in distances. (default: 0.2)")
]
Resampling = Annotated[str | None, typer.Option(help="multinomial or systematic. (default: multinomial)")]
Order = Annotated[
    str | None, typer.Option(help="random, or shard: draws in the order of the shards. (default: random)")
]
Slice = Annotated[
    float | None, typer.Option("--slice", help="Length of a window in epochs, above 0, at most 1. (default: 0.0625)")
]
Epochs = Annotated[
    float | None, typer.Option(help="Length; an epoch is as many draws as images. (default: the recipe's)")
]
ConfigFile = Annotated[Path | None, typer.Option(help="YAML file with values, such as a run's config.yaml.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="section.key=value; a run's config.yaml lists all keys.")
]

_KEYS = {
    "data": "data.root",
    "decoder": "data.decoder",
    "max_bad": "data.max_bad",
    "stall_timeout": "data.stall_timeout",
    "curriculum": "curriculum.name",
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


def config_values(config: Path | None, settings: list[str] | None, **flags: Any) -> dict[str, Any]:
    """Return the dotted keys that a command line sets: --set wins over flags, and flags over the file `config`.

    `flags` are named as in `_KEYS`; None is one that was not given. Raises ConfigError.
    """
    from mimcl.cli.config import parse_settings, read_yaml

    values = read_yaml(config) if config else {}
    values |= {_KEYS[name]: value for name, value in flags.items() if value is not None}
    return values | parse_settings(settings or [])
