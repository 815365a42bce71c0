"""`mimcl demo`: the whole program on images that it makes itself."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mimcl.cli.evaluate.results import Result


# What differs from cpu_small: patches a texture's period in size, and a fast start for a run of minutes.
_SETTINGS = {"model.patch_size": 16, "optim.base_lr": 3e-3, "optim.warmup_epochs": 2}


@dataclass(frozen=True)
class DemoConfig:
    """Sizes in images, length in epochs."""

    train: int = 2400
    val: int = 800
    epochs: float = 30.0
    seed: int = 0


def demo_command(
    out: Annotated[Path, typer.Option(help="Folder for everything that is made.")] = Path("demo"),
) -> None:
    """Show the whole program on generated images: pack, cluster, train, evaluate, draw. Takes minutes."""
    started = time.monotonic()
    result = demo(out, DemoConfig())
    show(out, result, time.monotonic() - started)


def demo(out: Path, config: DemoConfig) -> Result:
    """Makes out/{images,shards,run,demo.png} and returns the evaluation. Raises what its parts raise."""
    import numpy as np

    from mimcl.cli.console import console
    from mimcl.cli.data.shard import shard
    from mimcl.cli.demo.demo_images import untypicality, write_images
    from mimcl.cli.demo.demo_picture import draw_picture
    from mimcl.cli.evaluate.knn import knn
    from mimcl.cli.prototypes.build import BuildConfig, build
    from mimcl.cli.report.writer import write_report
    from mimcl.cli.run.folder import open_run
    from mimcl.cli.train import train
    from mimcl.pipeline.files import DataError
    from mimcl.pipeline.index import ShardIndex
    from mimcl.pipeline.shards import PackConfig

    if out.exists():
        raise DataError(f"{out} exists; delete it, or give another --out")

    def announce(what: str) -> None:
        console.print(f"\n== {what}")

    announce(f"drawing {config.train + config.val:,} images of textured shapes")
    write_images(out / "images", config.train, config.val, config.seed)
    announce(f"mimcl shard {out}/images --out {out}/shards")
    shards = out / "shards"
    shard(out / "images", shards, PackConfig())
    announce(f"mimcl prototypes build --data {shards} --features sift")
    _, found = build(shards, BuildConfig(features="sift", seed=config.seed))
    index, val = ShardIndex.load(shards), ShardIndex.load(shards, "val")
    drawn = [untypicality(index.path(sample_id)) for sample_id in range(index.samples)]
    agreement = np.corrcoef(drawn, found.distance)[0, 1]
    console.print(
        f"correlation of the distances with the untypicality that the images were drawn with: {agreement:.2f}"
    )
    settings = "".join(f" --set {key}={value:g}" for key, value in _SETTINGS.items())
    announce(f"mimcl train --recipe cpu_small --curriculum proto --data {shards} --epochs {config.epochs:g}{settings}")
    values = {
        "data.root": str(shards),
        "curriculum.name": "proto",
        "trainer.epochs": config.epochs,
        "seed": config.seed,
        "report": False,  # written below, with the evaluation
        **_SETTINGS,
    }
    run = open_run("cpu_small", values, out / "run", resume=False)
    if not train(run):
        raise KeyboardInterrupt
    announce(f"mimcl eval knn {run.folder}")
    result = knn(run.folder)
    draw_picture(out / "demo.png", run.folder, index, val, found)
    announce(f"mimcl report {run.folder}")
    write_report([run.folder])
    return result


def show(out: Path, result: Result, seconds: float) -> None:
    """Prints what came out, where it lies, and what to type next."""
    from mimcl.cli.console import console

    console.print(f"\nnn: share of {result.val:,} val images whose nearest train image is of their class")
    for name, shares in (("untrained encoder", result.untrained), ("trained encoder", result.trained)):
        console.print(f"  {name:22}{100 * shares['nn']:5.1f} ± {100 * result.standard_error(shares['nn']):.1f} %")
    gain = 100 * (result.trained["nn"] - result.untrained["nn"])
    console.print(f"  {'gain':22}{gain:+5.1f} points; the demo took {seconds / 60:.1f} minutes")
    console.print("\nwhere everything lies")
    for name, content in (
        ("demo.png", "typical and untypical images, the curriculum, crops with masks and reconstructions"),
        ("images/", "SPLIT/CLASS/NUMBER_UNTYPICALITY.jpg, the untypicality in percent"),
        ("shards/", "the same, packed; prototypes/default/gallery.png shows the clusters"),
        ("run/", "configuration, metrics, checkpoints; report.html shows them in a browser"),
    ):
        console.print(f"  {out / name!s:20}  {content}")
    console.print("\nnext, with images of your own")
    for command in ("shard YOUR_IMAGES/", "prototypes build", "train --curriculum proto --temp-schedule cosine"):
        console.print(f"  mimcl {command}")
