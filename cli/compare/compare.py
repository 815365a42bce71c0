"""`mimcl compare`: compare arms over several seeds, with equal samples or equal training time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mimcl.cli.compare.compare_config import Budget, CompareConfig
from mimcl.cli.errors import STOPPED_EXIT_CODE
from mimcl.cli.evaluate.eval_options import EVALUATIONS
from mimcl.cli.help import completions
from mimcl.cli.options import (
    BaseLr,
    BatchSize,
    ImageSize,
    MaskRatio,
    Prototypes,
    RecipeName,
    config_values,
)

if TYPE_CHECKING:
    from mimcl.cli.compare.comparison import Comparison


def compare_command(
    context: typer.Context,
    recipe: Annotated[RecipeName, typer.Option(help="Configuration to start from.", rich_help_panel="Arms")],
    arms: Annotated[
        str,
        typer.Option(
            help="Arms to compare, separated by commas; the first is the baseline. Each is "
            "DATA[+MASKING][+SCHEDULE]. DATA: epochs (plain MAE), uniform (with replacement), proto, anti or subset; "
            "MASKING: block, grid, green, hpm or cl-mae; SCHEDULE: linear, step, ...; +balance balances the clusters, "
            "+efficient starts with small crops, +cross has a lighter decoder. Example: uniform,subset,proto+hpm.",
            metavar="ARM,ARM,...",
            autocompletion=completions.arms,
            rich_help_panel="Arms",
        ),
    ],
    seeds: Annotated[int, typer.Option(min=1, help="Runs per arm, with seeds 0 to N - 1.", rich_help_panel="Arms")] = 3,
    budget: Annotated[
        Budget,
        typer.Option(
            help="samples: equal draws; time: equal training time, measured by a short run of each arm.",
            rich_help_panel="Arms",
        ),
    ] = "samples",
    epochs: Annotated[
        float | None,
        typer.Option(
            help="Length of a run; by time, of the first arm's.", show_default="the recipe's", rich_help_panel="Arms"
        ),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Folder of shards.", show_default="shards", rich_help_panel="Arms")
    ] = None,
    prototypes: Prototypes = None,
    image_size: ImageSize = None,
    mask_ratio: MaskRatio = None,
    batch_size: BatchSize = None,
    base_lr: BaseLr = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for all runs.", show_default="comparisons/RECIPE", rich_help_panel="Run")
    ] = None,
    evaluations: Annotated[
        str,
        typer.Option(
            "--eval",
            metavar="NAME,...",
            help="Evaluations: knn, linear, attentive, few-shot, rank, separated by commas, or '' for none.",
            autocompletion=completions.evaluations,
            rich_help_panel="Evaluation",
        ),
    ] = "knn",
    online_knn: Annotated[
        float | None,
        typer.Option(
            metavar="N",
            help="Evaluate k-NN every N epochs and at the end; 0: never.",
            show_default="0",
            rich_help_panel="Evaluation",
        ),
    ] = None,
    online_rank: Annotated[
        float | None,
        typer.Option(
            metavar="N",
            help="Measure RankMe and LiDAR every N epochs and at the end; 0: never.",
            show_default="0",
            rich_help_panel="Evaluation",
        ),
    ] = None,
    processes: Annotated[
        int, typer.Option(min=1, help="Processes per run, started by torchrun; one per GPU.", rich_help_panel="Run")
    ] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the commands of all runs; run nothing.", rich_help_panel="Run")
    ] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Set any value for all arms; `mimcl keys` lists the keys. May be repeated.",
            autocompletion=completions.settings,
            rich_help_panel="Arms",
        ),
    ] = None,
) -> None:
    """Train and evaluate arms over several seeds, and report means with confidence intervals.

    The same command resumes a stopped comparison; arms may be added and --seeds raised. Writes the runs,
    comparison.json and report.html to --out. Ctrl-C or SIGTERM saves and exits with code 75.
    """
    from mimcl.cli.compare.children import StoppedError
    from mimcl.cli.config import parse_settings
    from mimcl.cli.console import warn
    from mimcl.cli.suggest import invocation

    try:
        compare(**context.params | {"settings": parse_settings(settings or [])})
    except StoppedError:
        warn(f"stopped and saved; resume with the same command: {invocation()}")
        raise typer.Exit(STOPPED_EXIT_CODE) from None


def compare(
    recipe: RecipeName,
    arms: str | Sequence[str],
    *,
    seeds: int = 3,
    budget: Budget = "samples",
    epochs: float | None = None,
    data: str | Path | None = None,
    prototypes: str | Path | None = None,
    image_size: int | None = None,
    mask_ratio: float | None = None,
    batch_size: int | None = None,
    base_lr: float | None = None,
    out: str | Path | None = None,
    evaluations: str | Sequence[str] = "knn",
    online_knn: float | None = None,
    online_rank: float | None = None,
    processes: int = 1,
    dry_run: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> Comparison:
    """Train and evaluate arms over several seeds, as `mimcl compare` does, each run in a process of its own.

    The same call resumes a stopped comparison.

    Args:
        recipe: Recipe to start from.
        arms: Names of the arms, as a list or separated by commas; the first is the baseline.
        seeds: Runs per arm, with seeds 0 to seeds - 1.
        budget: "samples" for equal draws, "time" for equal training time, measured by a short run of each arm.
        epochs: Length of a run; with the budget "time", of a run of the first arm. None is the recipe's.
        data: Folder or URL of shards; None is "shards".
        prototypes: Prototype set of all arms.
        image_size: Side of the crops in pixels.
        mask_ratio: Share of the patches removed from each image.
        batch_size: Images per step, over all processes.
        base_lr: Learning rate for a batch of 256.
        out: Folder of the runs, comparison.json and report.html; None is comparisons/RECIPE.
        evaluations: Names of protocols, as a list or separated by commas; "" or an empty list for none.
        online_knn: Epochs between evaluations by nearest neighbours during training; 0: never.
        online_rank: Epochs between measurements of RankMe and LiDAR; 0: never.
        processes: Processes per run, started by torchrun.
        dry_run: Whether to print the commands only.
        settings: Values of configuration keys for all arms.

    Returns:
        The figures of the `runs`, and `rows` with means, intervals and differences from the first arm; both are empty
        with `dry_run`.

    Raises:
        ConfigError: An argument is wrong, or some do not go together; raised before anything runs.
        DataError: The shards cannot be read; raised before anything runs.
        PrototypeError: The prototype set is missing; raised before anything runs.
        ChildError: A run failed.
        StoppedError: Ctrl-C or SIGTERM stopped it, and everything is saved.
    """
    from mimcl.cli.compare.arms import arms as read_arms
    from mimcl.cli.compare.run_comparison import print_plan, run_comparison
    from mimcl.cli.errors import ConfigError

    names = [name.strip() for name in _listed(evaluations) if name.strip()]
    if unknown := [name for name in names if name not in EVALUATIONS]:
        raise ConfigError(f"--eval {unknown[0]!r} is unknown; choose from {', '.join(EVALUATIONS)}")
    flags = {"image_size": image_size, "mask_ratio": mask_ratio, "batch_size": batch_size, "base_lr": base_lr}
    values = config_values(flags, settings=settings)
    for key, flag, value in (
        ("data.root", "--data", data),
        ("curriculum.prototypes", "--prototypes", prototypes),
        ("trainer.epochs", "--epochs", epochs),
        ("seed", "--seeds", None),
        ("trainer.online_knn_epochs", "--online-knn", online_knn),
        ("trainer.online_rank_epochs", "--online-rank", online_rank),
    ):
        if key in values:
            raise ConfigError(f"--set {key} is not possible here; use {flag}")
        if value is not None:
            values[key] = str(value) if isinstance(value, Path) else value
    folder = Path(out) if out else None
    config = CompareConfig(recipe, read_arms(",".join(_listed(arms))), seeds, budget, values, folder, names, processes)
    return print_plan(config) if dry_run else run_comparison(config)


def _listed(names: str | Sequence[str]) -> Sequence[str]:
    return names.split(",") if isinstance(names, str) else names
