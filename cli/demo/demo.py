"""`mimcl demo`: the whole program on generated images."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mimcl.cli.evaluate.results import Result


# Changes to cpu_small: patches of about one texture period, and a fast start for a run of minutes.
_SETTINGS = {"model.patch_size": 16, "optim.base_lr": 3e-3, "optim.warmup_epochs": 2}


@dataclass(frozen=True)
class DemoConfig:
    """Numbers of images, and length in epochs."""

    train: int = 2400
    val: int = 800
    epochs: float = 30.0
    seed: int = 0


def demo_command(
    out: Annotated[Path, typer.Option(help="Folder for all results.")] = Path("demo"),
) -> None:
    """Run the whole program on generated images: pack, cluster, train, evaluate, draw. Takes minutes."""
    started = time.monotonic()
    result = demo(out, DemoConfig())
    print_results(out, result, time.monotonic() - started)


def demo(out: Path, config: DemoConfig) -> Result:
    """Make out/{images,shards,run,demo.png} and return the evaluation. Raises what the commands raise."""
    import numpy as np

    from mimcl.cli.console import console
    from mimcl.cli.data.shard import shard
    from mimcl.cli.demo.demo_images import atypicality, write_images
    from mimcl.cli.demo.demo_picture import draw_picture
    from mimcl.cli.evaluate.evaluation import evaluate
    from mimcl.cli.prototypes.build_command import build_prototypes
    from mimcl.cli.report.report import report
    from mimcl.cli.suggest import command
    from mimcl.cli.train import train
    from mimcl.pipeline.files import DataError
    from mimcl.pipeline.index import ShardIndex

    if out.exists():
        raise DataError(f"{out} exists; delete it, or give another --out")

    def announce(what: str) -> None:
        console.print()
        console.print(f"== {what}")

    announce(f"drawing {config.train + config.val:,} images of textured shapes")
    write_images(out / "images", config.train, config.val, config.seed)
    shards = out / "shards"
    announce(command("shard", out / "images", out=shards))
    shard(out / "images", shards)
    announce(command("prototypes build", data=shards, features="sift"))
    _, found = build_prototypes(shards, features="sift", seed=config.seed)
    index, val = ShardIndex.load(shards), ShardIndex.load(shards, "val")
    drawn = [atypicality(index.path(sample_id)) for sample_id in range(index.samples)]
    agreement = np.corrcoef(drawn, found.distance)[0, 1]
    console.print(f"correlation of the distances with the atypicality of the generated images: {agreement:.2f}")
    settings = "".join(f" --set {key}={value:g}" for key, value in _SETTINGS.items())
    asked = {"recipe": "cpu_small", "curriculum": "proto", "data": shards, "epochs": f"{config.epochs:g}"}
    announce(command("train", **asked) + settings)
    run = train(
        "cpu_small",
        curriculum="proto",
        data=shards,
        epochs=config.epochs,
        out=out / "run",
        seed=config.seed,
        settings={**_SETTINGS, "report": False},  # written below, with the evaluation
    )
    if not run.finished:
        raise KeyboardInterrupt
    announce(command("eval knn", run.folder))
    result = evaluate(run.folder)
    draw_picture(out / "demo.png", run.folder, index, val, found)
    announce(command("report", run.folder))
    report(run.folder)
    return result


def print_results(out: Path, result: Result, seconds: float) -> None:
    """Print the results, where they are, and the next commands."""
    from mimcl.cli.console import console
    from mimcl.cli.suggest import command

    console.print()
    console.print(f"nn: share of the {result.val:,} val images whose nearest train image has the same class")
    for name, shares in (("untrained encoder", result.untrained), ("trained encoder", result.trained)):
        console.print(f"  {name:22}{100 * shares['nn']:5.1f} ± {100 * result.standard_error(shares['nn']):.1f} %")
    gain = 100 * (result.trained["nn"] - result.untrained["nn"])
    console.print(f"  {'gain':22}{gain:+5.1f} points; the demo took {seconds / 60:.1f} minutes")
    console.print()
    console.print("results")
    for name, content in (
        ("demo.png", "typical and atypical images, the curriculum, crops with masks and reconstructions"),
        ("images/", "SPLIT/CLASS/NUMBER_ATYPICALITY.jpg, the atypicality in percent"),
        ("shards/", "the images, packed; prototypes/default/gallery.png shows the clusters"),
        ("run/", "configuration, metrics, checkpoints, report.html"),
    ):
        console.print(f"  {out / name!s:20}  {content}")
    console.print()
    console.print("next, with your own images")
    console.print(f"  {command('shard', 'YOUR_IMAGES/')}")
    console.print(f"  {command('prototypes build')}")
    console.print(f"  {command('train', curriculum='proto', temp_schedule='cosine')}")
