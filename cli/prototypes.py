"""`mimcl prototypes build`: the distance of every image to its prototype."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from mimcl.curriculum.features import FeatureExtractor
    from mimcl.curriculum.prototypes import PrototypeSet

prototypes = typer.Typer(no_args_is_help=True, help="Prototype sets: how typical each image is.")


@dataclass(frozen=True)
class BuildConfig:
    """How to build a set; `k` None chooses it, `decoder` as in training."""

    features: str = "auto"
    k: int | None = None
    name: str = "default"
    seed: int = 0
    min_cluster: int = 3
    singletons: Literal["far", "near"] = "far"
    decoder: str = "auto"
    overwrite: bool = False


@prototypes.callback()
def _group() -> None:
    pass


@prototypes.command("build")
def build_command(
    data: Annotated[str, typer.Option(help="Folder of shards, or s3://, gs://, hf://.")] = "shards",
    features: Annotated[
        str,
        typer.Option(
            help="timm:MODEL, timm:MODEL@FILE, mae:CHECKPOINT, sift or pixels; auto takes DINO where the hub answers "
            "within 10 s, else sift."
        ),
    ] = BuildConfig.features,
    k: Annotated[str, typer.Option(help="Number of prototypes; auto chooses by the Davies-Bouldin index.")] = "auto",
    name: Annotated[str, typer.Option(help="Name of the set.")] = BuildConfig.name,
    seed: Annotated[int, typer.Option(help="Of k-means and of what sift learns.")] = BuildConfig.seed,
    min_cluster: Annotated[
        int, typer.Option(min=1, help="Clusters with fewer images have no typical member: distance 1.")
    ] = BuildConfig.min_cluster,
    singletons: Annotated[
        str, typer.Option(help="far, or near: such clusters get distance 0, as in the paper's code.")
    ] = BuildConfig.singletons,
    decoder: Annotated[str, typer.Option(help="auto, dali-gpu, dali-cpu or reference.")] = BuildConfig.decoder,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a set of the same name.")] = False,
) -> None:
    """Cluster the images in feature space and store each one's distance to its prototype."""
    from mimcl.cli.config import ConfigError
    from mimcl.cli.console import console
    from mimcl.pipeline.urls import shown

    if k != "auto" and not (k.isdecimal() and int(k) > 0):
        raise ConfigError(f"--k is {k!r}; give a whole number above 0, or auto")
    if singletons not in ("far", "near"):
        raise ConfigError(f"--singletons is {singletons!r}; give far or near")
    if decoder not in ("auto", "dali-gpu", "dali-cpu", "reference"):
        raise ConfigError(f"--decoder is {decoder!r}; give auto, dali-gpu, dali-cpu or reference")
    if not re.fullmatch(r"auto|sift|pixels|timm:[^@]+(@.+)?|mae:.+", features):
        raise ConfigError(
            f"unknown features {features!r}; give auto, sift, pixels, timm:MODEL, timm:MODEL@FILE or mae:CHECKPOINT"
        )
    if not re.fullmatch(r"[\w-][\w.-]*", name):
        raise ConfigError(f"--name {name!r} is no name for a folder; use letters, digits, dots, - and _")
    count = None if k == "auto" else int(k)
    _, found = build(data, BuildConfig(features, count, name, seed, min_cluster, singletons, decoder, overwrite))
    info = found.info
    if info["davies_bouldin"]:
        console.print(
            "Davies-Bouldin index: " + "  ".join(f"K {n}: {index:.3f}" for n, index in info["davies_bouldin"])
        )
    smallest, largest = info["cluster_sizes"]
    console.print(
        f"{info['k']} prototypes for {info['samples']:,} images, clusters of {smallest:,} to {largest:,} images"
    )
    where = "" if data == "shards" else f" --data {shown(data)}"
    where += "" if name == "default" else f" --set curriculum.prototypes={name}"
    console.print(
        f"wrote {shown(data)}/prototypes/{name}/ with gallery.png · next: mimcl train --curriculum proto{where}"
    )


def build(data: str | Path = "shards", config: BuildConfig = BuildConfig()) -> tuple[Path, PrototypeSet]:
    """Builds and stores a set with its gallery; returns its folder and the set, with a distance for each sample.

    For shards at a URL the folder is in the cache, and what lies there was put beside the shards.

    Raises PrototypeError for a set that is there already or cannot be built, DataError for shards that cannot be read.
    """
    from mimcl.cli.console import console
    from mimcl.cli.extract import extract, open_decoder, sample_images
    from mimcl.cli.gallery import draw_gallery
    from mimcl.curriculum.prototypes import PrototypeError, build_prototypes
    from mimcl.pipeline.index import ShardIndex
    from mimcl.pipeline.mirror import set_exists
    from mimcl.pipeline.remote import can_write, upload

    index = ShardIndex.load(data)
    if index.url and not can_write(index.url):
        raise PrototypeError(f"{index.shown} takes no files: build the set beside the shards that were uploaded there")
    folder = index.root / "prototypes" / config.name
    if set_exists(index, config.name) and not config.overwrite:
        raise PrototypeError(f"{folder} exists; give another --name, or --overwrite to replace it")
    if config.k is not None and config.k > index.samples / 2:
        raise PrototypeError(
            f"--k {config.k} is more than half the {index.samples} images of {index.shown}; give fewer"
        )
    extractor, reason = _extractor(config.features, config.seed)
    console.print(f"features: {extractor.name} ({reason})")
    decoder = open_decoder(config.decoder, extractor.image_size, index)
    if extractor.fit_images:
        extractor.fit(sample_images(index, decoder, extractor.fit_images))
    features = extract(index, extractor, decoder, "features")
    found = build_prototypes(
        features,
        config.k,
        config.seed,
        features_name=extractor.name,
        features_reason=reason,
        index_fingerprint=index.fingerprint,
        min_cluster=config.min_cluster,
        singletons=config.singletons,
    )
    found.save(folder, config.overwrite or index.url is not None, {"gallery.png": draw_gallery(index, found)})
    if index.url:
        upload(folder, f"{index.url}/prototypes")
    return folder, found


def _extractor(spec: str, seed: int) -> tuple[FeatureExtractor, str]:
    from mimcl.curriculum.features import build_extractor

    if spec.startswith("mae:"):
        from mimcl.cli.mae_features import MaeFeatures

        return MaeFeatures.load(Path(spec.removeprefix("mae:"))), "asked for"
    return build_extractor(spec, seed)
