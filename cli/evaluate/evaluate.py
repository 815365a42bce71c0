"""`mimcl eval`: evaluate the features of a trained encoder by standard protocols."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mimcl.cli.evaluate import eval_options as options
from mimcl.cli.help import completions
from mimcl.cli.help.commands import Commands
from mimcl.pipeline.data_config import DataConfig

if TYPE_CHECKING:
    from mimcl.cli.evaluate.results import Result

protocols = Commands("Evaluate a trained encoder.")


@protocols.callback()
def _group() -> None:
    pass


def _evaluate(context: typer.Context, protocol: str, **converted: Any) -> None:
    """Run a protocol with the command's options; rank 0 prints the result, and what to do next."""
    from mimcl.cli.evaluate.evaluation import evaluate
    from mimcl.model.world import World

    given = dict(context.params)
    path, data = given.pop("path"), given["data"]
    result: Result = evaluate(path, protocol, **given | converted)  # type: ignore[call-overload]
    if World.from_environment().rank == 0:
        from mimcl.cli.console import console
        from mimcl.cli.evaluate.results import print_result
        from mimcl.cli.suggest import after_evaluation
        from mimcl.model.checkpoint_path import named_run

        print_result(result)
        if following := after_evaluation(result.evaluation, path, named_run(path), data):
            console.print(f"next: {following}")


@protocols.command("knn")
def knn_command(
    context: typer.Context,
    path: options.Checkpoint,
    data: options.Data = None,
    k: Annotated[int, typer.Option(min=1, help="Number of neighbours that vote.")] = options.NEIGHBOURS,
    pool: options.Pool = "mean",
    decoder: options.Decoder = "auto",
    cache: options.Cache = True,
    max_bad: options.MaxBad = DataConfig.max_bad,
) -> None:
    """Classify val images by their nearest train images, with the trained and the untrained encoder."""
    _evaluate(context, "knn")


@protocols.command("linear")
def linear_command(
    context: typer.Context,
    path: options.Checkpoint,
    data: options.Data = None,
    recipe: Annotated[
        Literal["fast", "mae"],
        typer.Option(help="fast: cached features, 13 learning rates at once; mae: MAE's recipe, with augmentation."),
    ] = "fast",
    epochs: Annotated[
        float | None,
        typer.Option(help="Length in epochs.", show_default="90 with mae; 10 with fast, at least 2,000 steps"),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images per step.", show_default="16384 with mae, 512 with fast")
    ] = None,
    base_lr: Annotated[
        float | None, typer.Option(help="Learning rate for a batch of 256; mae only.", show_default="0.1")
    ] = None,
    pool: options.Pool = "mean",
    decoder: options.Decoder = "auto",
    cache: options.Cache = True,
    max_bad: options.MaxBad = DataConfig.max_bad,
) -> None:
    """Train a linear layer on frozen features.

    --pool, --no-cache, --max-bad and the untrained encoder are for fast only.
    """
    _evaluate(context, "linear")


@protocols.command("attentive")
def attentive_command(
    context: typer.Context,
    path: options.Checkpoint,
    data: options.Data = None,
    recipe: Annotated[
        Literal["fast", "mae"],
        typer.Option(help="fast: AdamW, for data sets of any size; mae: LARS, the published recipe for ImageNet."),
    ] = "fast",
    epochs: Annotated[
        float | None,
        typer.Option(help="Length in epochs.", show_default="90 with mae; 10 with fast, at least 300 steps"),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images per step.", show_default="4096 with mae, 256 with fast")
    ] = None,
    base_lr: Annotated[
        float | None,
        typer.Option(help="Learning rate for a batch of 256.", show_default="0.1 with mae, 0.03 with fast"),
    ] = None,
    queries: Annotated[
        int, typer.Option(min=1, help="Number of queries; it divides the width of a token.")
    ] = options.QUERIES,
    decoder: options.Decoder = "auto",
) -> None:
    """Train an attentive probe (efficient probing) on the patch tokens of augmented images; the encoder is frozen.

    If it is stopped or killed, the same command continues from the last checkpoint.
    """
    _evaluate(context, "attentive")


@protocols.command("few-shot")
def few_shot_command(
    context: typer.Context,
    path: options.Checkpoint,
    data: options.Data = None,
    shots: Annotated[
        list[int], typer.Option(min=1, help="Train images per class; may be repeated.", show_default="1, 5 and 10")
    ] = [],  # noqa: B006 - typer's way of saying none
    seeds: Annotated[
        int, typer.Option(min=1, help="Number of random subsets for mean and standard deviation.")
    ] = options.SEEDS,
    pool: options.Pool = "mean",
    decoder: options.Decoder = "auto",
    cache: options.Cache = True,
    max_bad: options.MaxBad = DataConfig.max_bad,
) -> None:
    """Fit logistic regression on a few train images per class, with the trained and the untrained encoder."""
    _evaluate(context, "few-shot", shots=shots or options.SHOTS)


@protocols.command("rank")
def rank_command(
    context: typer.Context,
    path: options.Checkpoint,
    data: options.Data = None,
    split: Annotated[options.SplitName, typer.Option(help="Which images to take.")] = "train",
    images: Annotated[int, typer.Option(min=2, help="Images for LiDAR.")] = options.LIDAR_IMAGES,
    views: Annotated[int, typer.Option(min=2, help="Random crops of each for LiDAR.")] = options.LIDAR_VIEWS,
    pool: options.Pool = "mean",
    decoder: options.Decoder = "auto",
    cache: options.Cache = True,
    max_bad: options.MaxBad = DataConfig.max_bad,
) -> None:
    """Measure without labels how many dimensions the features use: RankMe and LiDAR, trained and untrained."""
    _evaluate(context, "rank")


@protocols.command("finetune")
def finetune_command(
    context: typer.Context,
    path: options.Checkpoint,
    data: options.Data = None,
    epochs: Annotated[
        float | None,
        typer.Option(help="Length in epochs.", show_default="100; 50 for ViT-L and ViT-H", rich_help_panel="Training"),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(help="Images per step, over all processes.", show_default="1024", rich_help_panel="Training"),
    ] = None,
    micro_batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Images at once per process.",
            show_default="128; 64 for ViT-L, 32 for ViT-H",
            rich_help_panel="Training",
        ),
    ] = None,
    base_lr: Annotated[
        float | None,
        typer.Option(
            help="Learning rate for a batch of 256.",
            show_default="5e-4; 1e-3 for ViT-L and ViT-H",
            rich_help_panel="Training",
        ),
    ] = None,
    layer_decay: Annotated[
        float | None,
        typer.Option(
            help="Learning rate of a layer relative to the next.",
            show_default="0.65; 0.75 for ViT-L and ViT-H",
            rich_help_panel="Training",
        ),
    ] = None,
    drop_path: Annotated[
        float | None,
        typer.Option(
            help="Stochastic depth rate of the last block.",
            show_default="0.1; 0.2 for ViT-L, 0.3 for ViT-H",
            rich_help_panel="Training",
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Random seed.", show_default="0", rich_help_panel="Training")] = None,
    decoder: options.Decoder = "auto",
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Set any value, such as mixup=0; `mimcl keys` lists the keys. May be repeated.",
            autocompletion=completions.finetune_settings,
            rich_help_panel="Training",
        ),
    ] = None,
) -> None:
    """Fine-tune the whole encoder for classification by MAE's recipe for its size.

    If it is stopped or killed, the same command continues from the last checkpoint.
    """
    from mimcl.cli.config import parse_settings

    _evaluate(context, "finetune", settings=parse_settings(settings or []))
