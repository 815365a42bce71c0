"""Options of `mimcl train`, which other commands share, and the configuration keys that they set."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict, get_type_hints

from mimcl.cli.help import completions
from mimcl.cli.help.commands import option
from mimcl.pipeline.data_config import DecoderName

NamedRecipe = Literal["mae_b16", "mae_b16_fast", "mae_l16", "mae_h14", "cifar_tiny", "cpu_small"]
RecipeName = Literal["auto", NamedRecipe]
CurriculumName = Literal["none", "proto", "anti", "subset"]
MaskingName = Literal[
    "random", "block", "grid", "green", "blue", "red", "purple", "hard-patches", "learned", "hpm", "cl-mae"
]
ScheduleName = Literal["cosine", "linear", "exponential", "step", "constant", "learned"]
ResamplingName = Literal["multinomial", "systematic"]
OrderName = Literal["auto", "random", "shard"]


class TempSchedule(StrEnum):
    """Temperature schedules; an Enum, since typer takes no list of Literals."""

    COSINE = "cosine"
    LINEAR = "linear"
    EXPONENTIAL = "exponential"
    STEP = "step"
    CONSTANT = "constant"
    LEARNED = "learned"


# Headings of the help, in its order.
RUN, DATA, CURRICULUM, MASKING = "Run", "Data", "Curriculum", "Masking"
OPTIMISATION, TRACKING = "Optimisation", "Tracking"


Recipe = Annotated[RecipeName | None, option(RUN, "Configuration to start from.", "auto")]
RunFolder = Annotated[Path | None, option(RUN, "Run folder.", "runs/RECIPE-CURRICULUM-MASKING", "--out", metavar="DIR")]
Resume = Annotated[
    bool, option(RUN, "Continue the run in --out; start it there if it has no checkpoint.", None, "--resume")
]
Init = Annotated[
    str | None, option(RUN, "Initial weights: a run, or a file of MAE, timm or Hugging Face.", metavar="FILE")
]
AllowChange = Annotated[
    list[str] | None,
    option(
        RUN,
        "With --resume: let section.key, index or prototypes differ. May be repeated.",
        metavar="FIELD",
        autocompletion=completions.changeable,
    ),
]
Seed = Annotated[int | None, option(RUN, "Random seed.", "0")]
ConfigFile = Annotated[Path | None, option(RUN, "YAML file with values, such as a run's config.yaml.", metavar="FILE")]
Settings = Annotated[
    list[str] | None,
    option(
        RUN,
        "Set any value; `mimcl keys` lists the keys. May be repeated.",
        None,
        "--set",
        metavar="KEY=VALUE",
        autocompletion=completions.settings,
    ),
]

Data = Annotated[
    str | None,
    option(DATA, "Folder of shards, or an s3://, gs://, hf:// or http(s):// URL.", "shards", metavar="DIR|URL"),
]
Decoder = Annotated[DecoderName | None, option(DATA, "Image decoder.", "auto")]
MaxBad = Annotated[
    float | None,
    option(DATA, "Share of the draws that may be bad samples; 10 are always allowed.", "0.001", metavar="SHARE"),
]
StallTimeout = Annotated[
    float | None,
    option(
        DATA,
        "Abort after this many seconds without data, or without an answer of another process.",
        "600",
        metavar="SECONDS",
    ),
]

ImageSize = Annotated[int | None, option(DATA, "Side of the crops.", "the recipe's", metavar="PIXELS")]

Resolution = Annotated[
    str | None,
    option(
        CURRICULUM,
        "Side of the crops over the run, in pixels, such as 112:0.4,160:0.3,224; or efficient.",
        "the recipe's",
        metavar="SIDE:SHARE,...",
        autocompletion=completions.resolutions,
    ),
]

Curriculum = Annotated[
    CurriculumName | None,
    option(CURRICULUM, "Images to draw first: typical (proto), atypical (anti) or random ones (subset).", "none"),
]
Prototypes = Annotated[
    str | None,
    option(
        CURRICULUM,
        "Prototype set: its name beside the shards, or its folder, with a /.",
        "default",
        metavar="SET",
        autocompletion=completions.prototype_sets,
    ),
]
Schedule = Annotated[
    TempSchedule | None, option(CURRICULUM, "How the temperature rises over the curriculum.", "cosine")
]
R0 = Annotated[float | None, option(CURRICULUM, "Effective fraction at the start, above 0 and below 0.632.", "0.15")]
CurriculumShare = Annotated[
    float | None, option(CURRICULUM, "Share of the run that the curriculum lasts, 0 to 1.", "1", metavar="SHARE")
]
Temperature = Annotated[
    float | None, option(CURRICULUM, "Temperature of --temp-schedule constant, in units of distance.", "0.2")
]
Resampling = Annotated[
    ResamplingName | None,
    option(CURRICULUM, "How a window draws: independently, or evenly spaced.", "multinomial"),
]
Balance = Annotated[
    bool | None,
    option(CURRICULUM, "Draw equally often from every cluster of the set.", "no-balance", "--balance/--no-balance"),
]
Order = Annotated[
    OrderName | None,
    option(
        CURRICULUM,
        "Order of the draws in a window; shard makes reads sequential.",
        "auto: shard for hf://, or random",
    ),
]
Slice = Annotated[
    float | None,
    option(CURRICULUM, "Length of a window in epochs, above 0 and at most 1.", "0.0625", "--slice", metavar="EPOCHS"),
]

Masking = Annotated[MaskingName | None, option(MASKING, "Masking; hard-patches is HPM, learned is CL-MAE.", "random")]

MaskRatio = Annotated[
    float | None, option(MASKING, "Share of the patches removed from each image.", "0.75", metavar="SHARE")
]

Epochs = Annotated[
    float | None,
    option(OPTIMISATION, "Length of the run; an epoch has as many draws as there are images.", "the recipe's"),
]
BatchSize = Annotated[
    int | None, option(OPTIMISATION, "Images per step, over all processes.", "the recipe's", metavar="IMAGES")
]
BaseLr = Annotated[float | None, option(OPTIMISATION, "Learning rate for a batch of 256.", "the recipe's", "--lr")]
Compile = Annotated[bool | None, option(OPTIMISATION, "Use torch.compile.", "no-compile", "--compile/--no-compile")]
MaxNonfinite = Annotated[
    int | None,
    option(OPTIMISATION, "Abort after this many consecutive steps without a finite gradient.", "3", metavar="STEPS"),
]

OnlineKnn = Annotated[
    float | None,
    option(TRACKING, "Evaluate by nearest neighbours every N epochs; 0: never.", "0", metavar="EPOCHS"),
]
OnlineRank = Annotated[
    float | None,
    option(
        TRACKING,
        "Measure RankMe and LiDAR, without labels, every N epochs; 0: never.",
        "0",
        metavar="EPOCHS",
    ),
]
Wandb = Annotated[str | None, option(TRACKING, "Log to Weights & Biases as well.", metavar="PROJECT")]
Mlflow = Annotated[
    str | None, option(TRACKING, "Log to MLflow as well: http://HOST:5000 or sqlite:///FILE.", metavar="URI")
]


class RunFlags(TypedDict, total=False):
    """The options of `mimcl train` that set a key of the configuration, as keyword arguments; with the key."""

    data: Annotated[str | Path | None, "data.root"]
    decoder: Annotated[DecoderName | None, "data.decoder"]
    max_bad: Annotated[float | None, "data.max_bad"]
    stall_timeout: Annotated[float | None, "data.stall_timeout"]
    curriculum: Annotated[CurriculumName | None, "curriculum.name"]
    prototypes: Annotated[str | Path | None, "curriculum.prototypes"]
    temp_schedule: Annotated[ScheduleName | None, "curriculum.temp_schedule"]
    r0: Annotated[float | None, "curriculum.r0"]
    curriculum_share: Annotated[float | None, "curriculum.share"]
    temperature: Annotated[float | None, "curriculum.temperature"]
    resampling: Annotated[ResamplingName | None, "curriculum.resampling"]
    balance: Annotated[bool | None, "curriculum.balance"]
    order: Annotated[OrderName | None, "curriculum.order"]
    slice_epochs: Annotated[float | None, "curriculum.slice"]
    masking: Annotated[MaskingName | None, "masking.name"]
    epochs: Annotated[float | None, "trainer.epochs"]
    batch_size: Annotated[int | None, "data.batch_size"]
    image_size: Annotated[int | None, "data.image_size"]
    resolution: Annotated[str | None, "curriculum.resolution"]
    mask_ratio: Annotated[float | None, "masking.mask_ratio"]
    base_lr: Annotated[float | None, "optim.base_lr"]
    online_knn: Annotated[float | None, "trainer.online_knn_epochs"]
    online_rank: Annotated[float | None, "trainer.online_rank_epochs"]
    use_compile: Annotated[bool | None, "trainer.compile"]
    max_nonfinite: Annotated[int | None, "trainer.max_nonfinite"]
    wandb: Annotated[str | None, "log.wandb"]
    mlflow: Annotated[str | None, "log.mlflow"]
    seed: Annotated[int | None, "seed"]
    init: Annotated[str | Path | None, "init"]


CONFIG_KEYS: dict[str, str] = {  # by parameter
    name: hint.__metadata__[0] for name, hint in get_type_hints(RunFlags, include_extras=True).items()
}

_OPTION_NAMES = {"slice_epochs": "slice", "base_lr": "lr", "use_compile": "compile"}  # where it is not the parameter's


def flags(values: Mapping[str, Any], parameters: Collection[str] = CONFIG_KEYS) -> dict[str, Any]:
    """Return the options that set dotted keys, as `suggest.command` takes them: those of `parameters`, or --set."""
    from mimcl.cli.config import as_yaml

    named = {CONFIG_KEYS[name]: _OPTION_NAMES.get(name, name) for name in parameters}
    is_flag = {key: key in named and value is not None and value is not False for key, value in values.items()}
    found = {
        named[key]: f"{value:g}" if isinstance(value, float) else value for key, value in values.items() if is_flag[key]
    }
    return found | {"set": [f"{key}={as_yaml(value)}" for key, value in values.items() if not is_flag[key]]}


def config_values(
    flags: Mapping[str, Any], config: str | Path | None = None, settings: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the dotted keys that are set: `settings` win over flags, and flags over the file `config`.

    Flags are those of `RunFlags`; None means not given. Raises ConfigError for the file, TypeError for other flags.
    """
    from mimcl.cli.config import read_yaml

    if unknown := flags.keys() - CONFIG_KEYS.keys():
        raise TypeError(f"{min(unknown)} is not a flag; choose from {', '.join(CONFIG_KEYS)}")
    values = read_yaml(Path(config)) if config else {}
    for name, value in flags.items():
        if isinstance(value, StrEnum | Path):
            value = str(value)
        if value is not None:
            values[CONFIG_KEYS[name]] = value
    return values | dict(settings or {})
