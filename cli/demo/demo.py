"""`mimcl demo`: the whole program on generated images, with a curriculum and with its control."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mimcl.cli.demo.demo_config import ARMS, EVALUATIONS, FAST, RECIPE, DemoConfig

if TYPE_CHECKING:
    from mimcl.cli.demo.demo_evaluation import Correct


def demo_command(
    out: Annotated[Path, typer.Option(help="Folder for all results.")] = Path("demo"),
    fast: Annotated[
        bool, typer.Option("--fast", help="Fewer images and epochs: under 90 s, too short to show anything.")
    ] = False,
) -> None:
    """Run the whole program on generated images: pack, cluster, train with and without the curriculum, compare.

    Takes about 5 minutes on 2 cores.
    """
    from mimcl.cli.demo.demo_table import print_files, print_table

    started = time.monotonic()
    config = FAST if fast else DemoConfig()
    correct = demo(out, config)
    print_table(correct, config, out / "shards")
    print_files(out, time.monotonic() - started)


def demo(out: Path, config: DemoConfig) -> dict[str, Correct]:
    """Make images, shards, runs and pages in `out`; return which val images each encoder classifies correctly.

    The encoders are "untrained" and those of ARMS. Raises what the commands raise.
    """
    import numpy as np

    from mimcl.cli.console import console
    from mimcl.cli.data.shard import shard
    from mimcl.cli.demo.demo_evaluation import evaluate_nn
    from mimcl.cli.demo.demo_images import atypicality_of, write_images
    from mimcl.cli.demo.demo_picture import draw_picture
    from mimcl.cli.prototypes.build_command import build_prototypes
    from mimcl.cli.report.report import report
    from mimcl.cli.suggest import command
    from mimcl.pipeline.files import DataError
    from mimcl.pipeline.index import ShardIndex

    if out.exists():
        raise DataError(f"{out} exists; delete it, or give another --out")

    announce(f"drawing {config.train + config.val:,} images of textured shapes")
    write_images(out / "images", config.train, config.val, config.seed)
    shards = out / "shards"
    announce(command("shard", out / "images", out=shards))
    shard(out / "images", shards)
    announce(command("prototypes build", data=shards, features="sift"))
    _, found = build_prototypes(shards, features="sift", seed=config.seed)
    index, val = ShardIndex.load(shards), ShardIndex.load(shards, "val")
    agreement = np.corrcoef(atypicality_of(index), found.distance)[0, 1]
    console.print(f"correlation of the distances with the atypicality of the generated images: {agreement:.2f}")
    runs = {arm: out / arm for arm in ARMS}
    _train(runs, shards, index.samples, config)
    correct: dict[str, Correct] = {}
    for arm, run in runs.items():
        announce(command("eval knn", run))
        of_run = evaluate_nn(run)
        correct |= {"untrained": of_run["untrained"], arm: of_run["trained"]}  # both began with the same weights
    draw_picture(out / "demo.png", runs, index, val, found)
    for run in runs.values():
        announce(command("report", run))
        report(run)
    announce(command("report", *runs.values(), label=list(runs), out=out / "report.html"))
    report(list(runs.values()), out / "report.html", label=list(runs))
    return correct


def announce(what: str) -> None:
    """Print a heading."""
    from mimcl.cli.console import console

    console.print()
    console.print(f"== {what}")


def _train(runs: Mapping[str, Path], shards: Path, samples: int, config: DemoConfig) -> None:
    """Train all arms at the same time."""
    from mimcl.cli.console import console
    from mimcl.cli.demo.side_by_side import log_of, train_side_by_side
    from mimcl.cli.recipes import recipe
    from mimcl.cli.run.resolve import whole_batches
    from mimcl.cli.suggest import command

    options = {run: _train_options(arm, run, shards, config) for arm, run in runs.items()}
    for of_run in options.values():
        announce(command("train", **of_run))
    logs = " and ".join(str(log_of(run)) for run in options)
    console.print(f"both at the same time, from the same weights; their output: {logs}")
    draws = whole_batches(config.epochs, samples, recipe(RECIPE).data.batch_size)
    train_side_by_side({run: _words(of_run) for run, of_run in options.items()}, draws)


def _train_options(arm: str, run: Path, shards: Path, config: DemoConfig) -> dict[str, object]:
    """Return the options of `mimcl train` for one arm; the report is written later, with the evaluation."""
    from mimcl.cli.compare.arms import DATA
    from mimcl.cli.demo.demo_table import settings

    return {
        "recipe": RECIPE,
        "curriculum": DATA[arm]["curriculum.name"],
        "data": shards,
        "epochs": f"{config.epochs:g}",
        "seed": config.seed,
        "online_knn": f"{config.epochs / EVALUATIONS:g}",
        "set": [*settings(), "report=false"],
        "out": run,
    }


def _words(options: Mapping[str, object]) -> list[str]:
    """Return options as the arguments of a process; those with a list are repeated."""
    words = []
    for name, given in options.items():
        for value in given if isinstance(given, list) else [given]:
            words += [f"--{name.replace('_', '-')}", str(value)]
    return words
