"""`mimcl demo`: the whole program on images that it makes itself."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mimcl.cli.evaluate import KnnResult


# What differs from cpu_small: patches a texture's period in size, and a fast start for a run of minutes.
_SETTINGS = {"model.patch_size": 16, "optim.base_lr": 3e-3, "optim.warmup_epochs": 2}


@dataclass(frozen=True)
class DemoConfig:
    """Sizes in images, length in epochs."""

    train: int = 2400
    val: int = 800
    epochs: float = 30.0
    seed: int = 0


def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything that is made.")] = Path("demo"),
) -> None:
    """Show the whole program on generated images: pack, cluster, train, evaluate, draw. Takes minutes."""
    started = time.monotonic()
    result = run_demo(out, DemoConfig())
    show(out, result, time.monotonic() - started)


def run_demo(out: Path, config: DemoConfig) -> KnnResult:
    """Makes out/{images,shards,run,demo.png} and returns the evaluation. Raises what its parts raise."""
    import numpy as np

    from mimcl.cli.console import console
    from mimcl.cli.demo_images import untypicality, write_images
    from mimcl.cli.demo_picture import draw_picture
    from mimcl.cli.evaluate import evaluate_knn
    from mimcl.cli.prototypes import BuildConfig, build_set
    from mimcl.cli.run import open_run
    from mimcl.cli.shard import pack_folder
    from mimcl.cli.train import train_run
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
    pack_folder(out / "images", shards, PackConfig(), holdout=0.0, overwrite=False)
    announce(f"mimcl prototypes build --data {shards} --features sift")
    _, found = build_set(shards, BuildConfig(features="sift", seed=config.seed))
    train, val = ShardIndex.load(shards), ShardIndex.load(shards, "val")
    drawn = [untypicality(train.path(sample_id)) for sample_id in range(train.samples)]
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
        **_SETTINGS,
    }
    run = open_run("cpu_small", values, out / "run", resume=False)
    if not train_run(run):
        raise KeyboardInterrupt
    announce(f"mimcl eval knn {run.folder}")
    result = evaluate_knn(run.folder)
    draw_picture(out / "demo.png", run.folder, train, val, found)
    return result


def show(out: Path, result: KnnResult, seconds: float) -> None:
    """Prints what came out, where it lies, and what to type next."""
    from mimcl.cli.console import console

    console.print(f"\nnn: share of {result.queries:,} val images whose nearest train image is of their class")
    for name, shares in (("untrained encoder", result.untrained), ("trained encoder", result.trained)):
        console.print(f"  {name:22}{100 * shares['nn']:5.1f} ± {100 * result.standard_error(shares['nn']):.1f} %")
    gain = 100 * (result.trained["nn"] - result.untrained["nn"])
    console.print(f"  {'gain':22}{gain:+5.1f} points; the demo took {seconds / 60:.1f} minutes")
    console.print("\nwhere everything lies")
    for name, content in (
        ("demo.png", "typical and untypical images, the curriculum, crops with masks and reconstructions"),
        ("images/", "SPLIT/CLASS/NUMBER_UNTYPICALITY.jpg, the untypicality in percent"),
        ("shards/", "the same, packed; prototypes/default/gallery.png shows the clusters"),
        ("run/", f"configuration, metrics, checkpoints; curves: tensorboard --logdir {out / 'run'}"),
    ):
        console.print(f"  {out / name!s:20}  {content}")
    console.print("\nnext, with images of your own")
    for command in ("shard YOUR_IMAGES/", "prototypes build", "train --curriculum proto --temp-schedule cosine"):
        console.print(f"  mimcl {command}")
