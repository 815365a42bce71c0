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
    """Train and evaluate arms over several seeds, as `mimcl compare` does with the same options.

    `arms` and `evaluations` are lists of names, or texts with commas. `out` None is comparisons/RECIPE, where the runs,
    comparison.json and report.html are written; the same call resumes a stopped comparison. Each run is a process of
    its own. Returns the figures of the runs, and `rows` with means, intervals and differences to the first arm; both
    are empty with `dry_run`, which prints the commands of all runs.

    Raises ConfigError, DataError and PrototypeError before anything runs, ChildError if a run fails, and StoppedError
    after Ctrl-C or SIGTERM, when all is saved.
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
