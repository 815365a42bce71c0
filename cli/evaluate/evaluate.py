"""`mimcl eval`: evaluate the features of a trained encoder by standard protocols."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mimcl.cli.evaluate import eval_options as options
from mimcl.cli.help import completions
from mimcl.cli.help.commands import Commands
from mimcl.pipeline.data_config import DataConfig

if TYPE_CHECKING:
    from mimcl.cli.evaluate.labelled import LabelledSplits
    from mimcl.cli.evaluate.results import Result
    from mimcl.model.world import World

evaluate = Commands("Evaluate a trained encoder.")


@evaluate.callback()
def _group() -> None:
    pass


def _evaluate(
    path: Path,
    data: str | None,
    protocol: Callable[[World], Result],
    check: Callable[[LabelledSplits], None] | None = None,
) -> None:
    """Run a protocol in the processes of torchrun; rank 0 prints the result, and what to do next.

    Missing encoders and data, and what `check` refuses, come first: the protocol imports torch, which takes seconds.
    """
    from mimcl.cli.encoders.saved import trained_on
    from mimcl.cli.evaluate.labelled import LabelledSplits
    from mimcl.model.world import World

    world = World.from_environment()
    trained_data = trained_on(path)
    splits = LabelledSplits.load(trained_data if data is None else data)
    if check is not None:
        check(splits)
    result = protocol(world)
    if world.rank == 0:
        from mimcl.cli.console import console
        from mimcl.cli.evaluate.results import print_result
        from mimcl.cli.suggest import after_evaluation
        from mimcl.model.checkpoint_path import named_run

        print_result(result)
        if following := after_evaluation(result.evaluation, path, named_run(path), data):
            console.print(f"next: {following}")


@evaluate.command("knn")
def knn_command(
    path: options.Checkpoint,
    data: options.Data = None,
    k: Annotated[int, typer.Option(min=1, help="Number of neighbours that vote.")] = 20,
    pool: options.Pool = "mean",
    decoder: options.Decoder = "auto",
    cache: options.Cache = True,
    max_bad: options.MaxBad = DataConfig.max_bad,
) -> None:
    """Classify val images by their nearest train images, with the trained and the untrained encoder."""

    def protocol(world: World) -> Result:
        from mimcl.cli.evaluate.features import FeatureOptions
        from mimcl.cli.evaluate.knn import knn

        return knn(path, data, k, FeatureOptions(pool, decoder, cache, max_bad), world)

    def check(splits: LabelledSplits) -> None:
        from mimcl.cli.evaluate.labelled import require_neighbours

        require_neighbours(splits, k)

    _evaluate(path, data, protocol, check)


@evaluate.command("linear")
def linear_command(
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
    from mimcl.cli.errors import ConfigError

    if recipe == "fast" and base_lr is not None:
        raise ConfigError("--base-lr needs --recipe mae: the fast recipe tries 13 learning rates")
    if recipe == "mae" and (pool != "mean" or not cache or max_bad != DataConfig.max_bad):
        raise ConfigError(
            "--pool, --no-cache and --max-bad need --recipe fast: the mae recipe uses CLS tokens, uncached"
        )

    def protocol(world: World) -> Result:
        if recipe == "mae":
            from mimcl.cli.evaluate.linear_mae import linear_mae

            return linear_mae(path, data, epochs, batch_size, decoder, world, base_lr)
        from mimcl.cli.evaluate.features import FeatureOptions
        from mimcl.cli.evaluate.linear import linear

        options = FeatureOptions(pool, decoder, cache, max_bad)
        return linear(path, data, epochs, batch_size, options=options, world=world)

    _evaluate(path, data, protocol)


@evaluate.command("few-shot")
def few_shot_command(
    path: options.Checkpoint,
    data: options.Data = None,
    shots: Annotated[
        list[int], typer.Option(min=1, help="Train images per class; may be repeated.", show_default="1, 5 and 10")
    ] = [],  # noqa: B006 - typer's way of saying none
    seeds: Annotated[int, typer.Option(min=1, help="Number of random subsets for mean and standard deviation.")] = 5,
    pool: options.Pool = "mean",
    decoder: options.Decoder = "auto",
    cache: options.Cache = True,
    max_bad: options.MaxBad = DataConfig.max_bad,
) -> None:
    """Fit logistic regression on a few train images per class, with the trained and the untrained encoder."""

    def protocol(world: World) -> Result:
        from mimcl.cli.evaluate.features import FeatureOptions
        from mimcl.cli.evaluate.few_shot import few_shot

        options = FeatureOptions(pool, decoder, cache, max_bad)
        return few_shot(path, data, shots or (1, 5, 10), seeds, options, world)

    def check(splits: LabelledSplits) -> None:
        from mimcl.cli.evaluate.labelled import require_shots

        require_shots(splits, shots or (1, 5, 10))

    _evaluate(path, data, protocol, check)


@evaluate.command("finetune")
def finetune_command(
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
    seed: Annotated[
        int | None, typer.Option(help="Seed of everything random.", show_default="0", rich_help_panel="Training")
    ] = None,
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
    from mimcl.cli.config import parse_settings, replaced
    from mimcl.model.evaluate.finetune_config import FinetuneConfig

    flags = {
        "epochs": epochs,
        "batch_size": batch_size,
        "base_lr": base_lr,
        "layer_decay": layer_decay,
        "drop_path": drop_path,
        "seed": seed,
    }
    values = {name: value for name, value in flags.items() if value is not None} | parse_settings(settings or [])
    replaced(FinetuneConfig(), values)  # refuses what suits no encoder

    def protocol(world: World) -> Result:
        from mimcl.cli.evaluate.finetune import finetune

        return finetune(path, data, values, micro_batch_size, decoder, world)

    _evaluate(path, data, protocol)
