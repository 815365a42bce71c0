"""`mimcl eval`: how good the features of a trained encoder are, by the field's protocols."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

evaluate = typer.Typer(no_args_is_help=True, help="Quality of a trained encoder.")

_Judged = Annotated[
    Path,
    typer.Argument(
        metavar="RUN_OR_CHECKPOINT",
        help="runs/NAME, one of its checkpoints, or weights: of MAE, timm or Hugging Face.",
    ),
]
_Data = Annotated[str | None, typer.Option(help="Folder or URL of shards. (default: the run's)")]
_Decoder = Annotated[str, typer.Option(help="auto, dali-gpu, dali-cpu or reference.")]
_Pool = Annotated[str, typer.Option(help="mean: of the patch tokens; cls: the CLS token.")]
_Cache = Annotated[
    bool, typer.Option("--cache/--no-cache", help="Leave the features in RUN/evaluation/features for the next command.")
]


@evaluate.callback()
def _group() -> None:
    pass


@evaluate.command("knn")
def knn_command(
    path: _Judged,
    data: _Data = None,
    k: Annotated[int, typer.Option(min=1, help="Neighbours that vote in knn.")] = 20,
    pool: _Pool = "mean",
    decoder: _Decoder = "auto",
    cache: _Cache = True,
) -> None:
    """Classify the val images by their nearest train images, trained and untrained."""
    from mimcl.cli.evaluate.features import FeatureOptions
    from mimcl.cli.evaluate.knn import knn
    from mimcl.cli.evaluate.results import show
    from mimcl.model.distributed import World

    world = World.from_environment()
    result = knn(path, data, k, FeatureOptions(pool, decoder, cache), world)
    if world.rank == 0:
        show(result)


@evaluate.command("linear")
def linear_command(
    path: _Judged,
    data: _Data = None,
    recipe: Annotated[
        str, typer.Option(help="fast: features once, 13 learning rates together; mae: MAE's own, with augmentation.")
    ] = "fast",
    epochs: Annotated[
        float | None,
        typer.Option(help="Length of the training. (default: the recipe's; fast: 10, at least 2,000 steps)"),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="(default: the recipe's; fast: 512)")] = None,
    base_lr: Annotated[
        float | None, typer.Option(help="Of --recipe mae: times batch size / 256. (default: 0.1)")
    ] = None,
    pool: _Pool = "mean",
    decoder: _Decoder = "auto",
    cache: _Cache = True,
) -> None:
    """Train a linear layer on frozen features; fast: trained and untrained. --pool and --no-cache are for fast."""
    from mimcl.cli.errors import ConfigError
    from mimcl.cli.evaluate.results import show
    from mimcl.model.distributed import World

    world = World.from_environment()
    if recipe == "fast":
        if base_lr is not None:
            raise ConfigError("--base-lr belongs to --recipe mae: fast tries 13 learning rates")
        from mimcl.cli.evaluate.features import FeatureOptions
        from mimcl.cli.evaluate.linear import linear

        options = FeatureOptions(pool, decoder, cache)
        result = linear(path, data, epochs, batch_size, options=options, world=world)
    elif recipe == "mae":
        if pool != "mean" or not cache:
            raise ConfigError("--pool and --no-cache belong to --recipe fast: MAE's own takes the CLS token, uncached")
        from mimcl.cli.evaluate.linear_mae import linear_mae

        result = linear_mae(path, data, epochs, batch_size, decoder, world, base_lr)
    else:
        raise ConfigError(f"there is no linear probe {recipe!r}; --recipe is fast or mae")
    if world.rank == 0:
        show(result)


@evaluate.command("few-shot")
def few_shot_command(
    path: _Judged,
    data: _Data = None,
    shots: Annotated[
        list[int], typer.Option(min=1, help="Train images a class; may be given several times. (default: 1, 5 and 10)")
    ] = [],  # noqa: B006 - typer's way of saying none
    seeds: Annotated[int, typer.Option(min=1, help="Subsets, over which mean and spread are taken.")] = 5,
    pool: _Pool = "mean",
    decoder: _Decoder = "auto",
    cache: _Cache = True,
) -> None:
    """Logistic regression on a few train images of each class, trained and untrained."""
    from mimcl.cli.evaluate.features import FeatureOptions
    from mimcl.cli.evaluate.few_shot import few_shot
    from mimcl.cli.evaluate.results import show
    from mimcl.model.distributed import World

    world = World.from_environment()
    result = few_shot(path, data, shots or (1, 5, 10), seeds, FeatureOptions(pool, decoder, cache), world)
    if world.rank == 0:
        show(result)


@evaluate.command("finetune")
def finetune_command(
    path: _Judged,
    data: _Data = None,
    epochs: Annotated[float | None, typer.Option(help="(default: 100; 50 for ViT-L and ViT-H)")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Of all processes together. (default: 1024)")] = None,
    micro_batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images at once. (default: 128; 64 for ViT-L, 32 for ViT-H)")
    ] = None,
    base_lr: Annotated[
        float | None, typer.Option(help="Times batch size / 256. (default: 5e-4; 1e-3 for ViT-L and ViT-H)")
    ] = None,
    layer_decay: Annotated[float | None, typer.Option(help="(default: 0.65; 0.75 for ViT-L and ViT-H)")] = None,
    drop_path: Annotated[float | None, typer.Option(help="(default: 0.1; 0.2 for ViT-L, 0.3 for ViT-H)")] = None,
    seed: Annotated[int | None, typer.Option(help="(default: 0)")] = None,
    decoder: _Decoder = "auto",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="key=value: any of the settings that are printed at the start, such as mixup=0."),
    ] = None,
) -> None:
    """Train all of the encoder further to classify, by MAE's recipe for its size; under torchrun, in all processes.

    Stopped or killed, the same command goes on where it saved last.
    """
    from mimcl.cli.config import parse_settings
    from mimcl.cli.evaluate.finetune import finetune
    from mimcl.cli.evaluate.results import show
    from mimcl.model.distributed import World

    flags = {
        "epochs": epochs,
        "batch_size": batch_size,
        "base_lr": base_lr,
        "layer_decay": layer_decay,
        "drop_path": drop_path,
        "seed": seed,
    }
    values = {name: value for name, value in flags.items() if value is not None} | parse_settings(settings or [])
    world = World.from_environment()
    result = finetune(path, data, values, micro_batch_size, decoder, world)
    if world.rank == 0:
        show(result)
