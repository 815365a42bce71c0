"""`mimcl prototypes build`: compute the distance of every image to its prototype, or its loss."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mimcl.cli.help import completions
from mimcl.cli.prototypes import set_options
from mimcl.cli.prototypes.build_config import BuildConfig
from mimcl.pipeline.data_config import DecoderName

if TYPE_CHECKING:
    from mimcl.curriculum.prototypes import PrototypeSet

_images, _clustering = (
    partial(typer.Option, rich_help_panel=heading) for heading in (set_options.IMAGES, set_options.CLUSTERING)
)


def build_command(
    context: typer.Context,
    data: set_options.Data = "shards",
    difficulty: Annotated[
        str,
        _images(
            help="distance to the prototype, or loss:CHECKPOINT: how badly a run reconstructs the image, without "
            "prototypes; its model takes about 2 times as long as --features mae:CHECKPOINT.",
            metavar="KIND",
            autocompletion=completions.difficulties,
        ),
    ] = BuildConfig.difficulty,
    features: Annotated[
        str,
        _images(
            help="auto, timm:MODEL, timm:MODEL@FILE, mae:CHECKPOINT, sift or pixels; auto is DINO if the hub answers "
            "within 10 s, else sift.",
            metavar="KIND",
            autocompletion=completions.features,
        ),
    ] = BuildConfig.features,
    k: Annotated[
        str,
        _clustering(
            help="Number of prototypes; auto chooses by the Davies-Bouldin index, which takes about 14 times as long."
        ),
    ] = "auto",
    levels: Annotated[
        int, _clustering(min=1, max=2, help="2 groups the clusters too, into about sqrt(K), for train --balance.")
    ] = BuildConfig.levels,
    name: set_options.Name = None,
    out: set_options.Out = None,
    seed: Annotated[int, _clustering(help="Seed of k-means, of sift and of a loss's masks.")] = BuildConfig.seed,
    min_cluster: Annotated[
        int, _clustering(min=1, help="Clusters with fewer images have no typical image: distance 1.")
    ] = BuildConfig.min_cluster,
    singletons: Annotated[
        Literal["far", "near"],
        _clustering(help="Distance of images in such clusters: 1 (far) or, as in the paper's code, 0 (near)."),
    ] = BuildConfig.singletons,
    decoder: Annotated[DecoderName, _images(help="Image decoder.")] = BuildConfig.decoder,
    overwrite: set_options.Overwrite = False,
    sample: Annotated[
        int, _clustering(min=2, help="Maximum images for k-means; all images are assigned.")
    ] = BuildConfig.sample,
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"],
        _images(help="Precision of timm features; auto is bfloat16 if the GPU or processor multiplies in it."),
    ] = BuildConfig.precision,
    max_bad: Annotated[
        float,
        _images(min=0, max=1, help="Share of the images that may be bad, and get distance 1; 10 are always allowed."),
    ] = BuildConfig.max_bad,
) -> None:
    """Cluster the images in feature space and store the distance of each to its prototype.

    With --difficulty loss:CHECKPOINT the reconstruction loss takes the place of the distance. A build that was stopped
    is resumed by the same command. Several processes share the work: torchrun --nproc-per-node 2 --no-python mimcl
    prototypes build.
    """
    from mimcl.cli.console import console
    from mimcl.cli.errors import ConfigError
    from mimcl.model.world import World

    if k != "auto" and not k.isdecimal():
        raise ConfigError(f"--k is {k!r}; give a whole number above 0, or auto")
    _, found = build_prototypes(**context.params | {"k": None if k == "auto" else int(k)})
    if World.from_environment().rank:
        return
    info = found.info
    if info.get("davies_bouldin"):
        console.print(
            "Davies-Bouldin index: " + "  ".join(f"K {n}: {index:.3f}" for n, index in info["davies_bouldin"])
        )
    if scores := info.get("scores"):
        console.print(f"loss of {info['samples']:,} images: {scores['lowest']:.4g} to {scores['highest']:.4g}")
    else:
        smallest, largest = info["cluster_sizes"]
        groups = f" in {len(set(info['parents']))} groups" if info.get("parents") else ""
        console.print(
            f"{info['k']} prototypes{groups} for {info['samples']:,} images, clusters of {smallest:,} to {largest:,} "
            "images"
        )
    if bad := info.get("bad"):
        console.print(f"bad images: {len(bad):,}, in no cluster, at distance 1; prototypes.json lists them")
    console.print(set_options.written(data, name, out))


def build_prototypes(
    data: str | Path = "shards",
    *,
    features: str = BuildConfig.features,
    k: int | None = None,
    name: str | None = None,
    out: str | Path | None = None,
    seed: int = BuildConfig.seed,
    min_cluster: int = BuildConfig.min_cluster,
    singletons: Literal["far", "near"] = BuildConfig.singletons,
    decoder: DecoderName = BuildConfig.decoder,
    overwrite: bool = False,
    sample: int = BuildConfig.sample,
    precision: Literal["auto", "float32", "bfloat16"] = BuildConfig.precision,
    max_bad: float = BuildConfig.max_bad,
    levels: int = BuildConfig.levels,
    difficulty: str = BuildConfig.difficulty,
) -> tuple[Path, PrototypeSet]:
    """Cluster the images of packed shards by their features, as `mimcl prototypes build` does.

    A build that was stopped is resumed by the same call. Started by torchrun, the processes share the work.

    Args:
        data: Folder or URL of shards.
        features: "auto", "sift", "pixels", "timm:MODEL", "timm:MODEL@FILE" or "mae:CHECKPOINT".
        k: Number of prototypes; None chooses by the Davies-Bouldin index, which takes about 14 times as long.
        name: Name of the set beside the shards; None is "default".
        out: Folder of the set, instead of `name`.
        seed: Seed of k-means, of sift, and of a loss's masks.
        min_cluster: Clusters with fewer images have no typical image.
        singletons: Distance of images in such clusters: "far" is 1, "near" is 0 as in the paper's code.
        decoder: Image decoder.
        overwrite: Whether to replace a set of this name.
        sample: Maximum number of images for k-means; all images are assigned.
        precision: Precision of timm features.
        max_bad: Share of the images that may be bad, 0 to 1; 10 always may. They get distance 1.
        levels: 2 groups the clusters too, into about sqrt(k), for `balance`.
        difficulty: "distance", or "loss:CHECKPOINT": the scaled reconstruction loss takes the place of the distance,
            and nothing is clustered.

    Returns:
        The folder of the set, and the set: `cluster` (N,), -1 for bad images, and `distance` (N,) in [0, 1], 0 =
        typical, both in the order of the index.

    Raises:
        ConfigError: Options do not go together.
        PrototypeError: A set of this name exists, or none can be built.
        DataError: Images or features cannot be read or written.
        CheckpointError: The weights for the features are missing or damaged.
    """
    from mimcl.cli.config import replaced
    from mimcl.cli.prototypes.build import build
    from mimcl.model.world import World

    values = dict(
        features=features,
        k=k,
        name=set_options.set_name(name, out),
        seed=seed,
        min_cluster=min_cluster,
        singletons=singletons,
        decoder=decoder,
        overwrite=overwrite,
        sample=sample,
        out=Path(out) if out else None,
        precision=precision,
        max_bad=max_bad,
        levels=levels,
        difficulty=difficulty,
    )
    return build(data, replaced(BuildConfig(), values), World.from_environment())
