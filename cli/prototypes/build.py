"""Builds a prototype set: computes the distance of every image to its prototype."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mimcl.cli.prototypes.build_config import BuildConfig

if TYPE_CHECKING:
    from mimcl.curriculum.features import FeatureExtractor
    from mimcl.curriculum.prototypes import PrototypeSet
    from mimcl.model.world import World
    from mimcl.pipeline.index import ShardIndex

_TIMEOUT_S = 8 * 3600.0  # for waiting for other ranks' features and for rank 0, which does the clustering


def build(
    data: str | Path = "shards", config: BuildConfig = BuildConfig(), world: World | None = None
) -> tuple[Path, PrototypeSet]:
    """Build and store a set with its gallery; return its folder and the set, with a distance for each sample.

    The ranks of `world` share the data; their number does not change the result. Intermediate results are kept in
    files, from which a stopped build is resumed: features take 4 N D bytes (2 GB for ImageNet with DINO ViT-S) and are
    removed at the end. They are beside the set's folder; for shards at a URL without `config.out` in the cache, and the
    set is uploaded beside the shards.
    Raises PrototypeError for a set that exists or cannot be built, DataError for shards that cannot be read.
    """
    import numpy as np

    from mimcl.cli.console import console
    from mimcl.cli.prototypes.rank_zero import WRITE_ELSEWHERE, on_first_rank
    from mimcl.curriculum.prototypes import PrototypeError, PrototypeSet, make_info
    from mimcl.model.world import World
    from mimcl.pipeline.files import atomic_folder
    from mimcl.pipeline.index import ShardIndex
    from mimcl.pipeline.remote.remote_folder import can_write, upload

    world = world or World()
    index = ShardIndex.load(data)
    uploads = index.url if config.out is None else None
    if uploads and not can_write(uploads):
        raise PrototypeError(f"{index.shown} is read-only; {WRITE_ELSEWHERE}")
    if uploads and world.size > world.local_size:
        raise PrototypeError(
            f"{index.shown} is a URL, so the machines share no folder to build in; use one machine, or give a shared "
            "one with --out"
        )
    folder = config.out or index.root / "prototypes" / config.name
    sets = folder.parent
    _require_free(index, config)
    if config.k is not None and config.k > index.samples / 2:
        raise PrototypeError(
            f"--k is {config.k}, more than half of the {index.samples} images in {index.shown}; give fewer"
        )

    # Only now: these import torch, which takes seconds, and what needs none has been refused by here.
    from mimcl.cli.encoders.bad_images import BadImages
    from mimcl.cli.encoders.lock import lock
    from mimcl.cli.encoders.split_features import BATCH, fill, open_decoder, sample_images
    from mimcl.cli.prototypes.gallery import draw_gallery
    from mimcl.cli.prototypes.workspace import BuildFolder
    from mimcl.curriculum.clustering import normalise_distances
    from mimcl.curriculum.kmeans import ITERATIONS
    from mimcl.model.distributed import agree, barrier, connected

    building = BuildFolder(sets / f".{folder.name}.building", index)
    mine = range(world.rank, len(building.features.chunks), world.size)

    def begin() -> None:
        _require_free(index, config)  # another process may have built it while this one waited for the lock
        building.folder.mkdir(exist_ok=True)  # here, so that a folder that is not writable is noticed at once

    with ExitStack() as session:
        session.enter_context(connected(world, world.device(), _TIMEOUT_S))
        on_first_rank(world, lambda: sets.mkdir(parents=True, exist_ok=True), sets)
        session.enter_context(lock(sets, world))
        on_first_rank(world, begin, sets)
        extractor, reason = _extractor(config, world)
        if world.rank == 0:
            reduced = ", in bfloat16" if extractor.precision == "bfloat16" else ""
            console.print(f"features: {extractor.name} ({reason}){reduced}")
        decoder = open_decoder(config.decoder, extractor.image_size, index, world=world)
        made_from = {
            "features": extractor.name,
            "precision": extractor.precision,
            "learned_with_seed": config.seed if extractor.fit_images else None,
            "index_fingerprint": index.fingerprint,
            "shards": [len(part) for part in building.features.chunks],
            "decoder": decoder.name,
            "batch": BATCH,
        }
        bad = BadImages(index, config.max_bad)
        images = partial(sample_images, index, decoder, extractor.fit_images, bad)
        on_first_rank(world, lambda: building.start(made_from, extractor, images), sets)
        agree("the features' settings", building.load_constants(extractor))
        fill(index, [building.features], [extractor], decoder, mine, "features" if world.rank == 0 else None, bad)
        barrier()
        on_first_rank(world, lambda: bad.require_few(building.bad_images()), sets)
        of_clusters = {"k": config.k, "seed": config.seed, "sample": config.sample, "iterations": ITERATIONS}
        on_first_rank(world, lambda: building.compute_clusters(of_clusters), sets)
        clusters = building.read_clusters(of_clusters)
        building.assign(clusters, mine)
        barrier()

        def finish() -> None:
            cluster, raw, distance = building.columns()
            count = len(clusters.centroids)
            normalise_distances(raw, cluster, count, config.min_cluster, config.singletons, out=distance)
            about: dict[str, Any] = {
                "features": extractor.name,
                "features_reason": reason,
                "precision": extractor.precision,
                **of_clusters,
                "singletons": config.singletons,
                "min_cluster": config.min_cluster,
                "index_fingerprint": index.fingerprint,
            }
            if lost := np.flatnonzero(cluster < 0).tolist():
                about["bad"] = [{"key": index.key(row), "path": index.path(row)} for row in lost]
            found = PrototypeSet(cluster, raw, distance, clusters.centroids, make_info(clusters, cluster, about))
            # A set in the cache may be left from one that is no longer beside the shards.
            with atomic_folder(folder, replace=config.overwrite or uploads is not None) as aside:
                found.save(aside)
                (aside / "gallery.png").write_bytes(draw_gallery(index, found))
            if uploads:
                upload(folder, f"{uploads}/prototypes")
            building.remove()

        on_first_rank(world, finish, sets)
    return folder, PrototypeSet.load(folder, index.fingerprint)


def _require_free(index: ShardIndex, config: BuildConfig) -> None:
    """Raise PrototypeError if the set exists, unless it is to be replaced, or if its folder has other files."""
    from mimcl.curriculum.prototypes import PrototypeError
    from mimcl.pipeline.files import list_folder

    if out := config.out:
        if out.exists() and not out.is_dir():
            raise PrototypeError(f"{out} is a file; give a folder with --out")
        exists = (out / "prototypes.json").exists()
        if not exists and list_folder(out):
            raise PrototypeError(f"{out} has other files; give a new folder with --out")
    else:
        exists = index.has_prototypes(config.name)
    if exists and not config.overwrite:
        existing = out or index.at(f"prototypes/{config.name}")
        raise PrototypeError(f"{existing} exists; give another --name or --out, or --overwrite to replace it")


def _extractor(config: BuildConfig, world: World) -> tuple[FeatureExtractor, str]:
    """Build the same extractor on all ranks; rank 0 decides what `auto` is."""
    from mimcl.cli.run.resolve import has_bfloat16
    from mimcl.curriculum.features import build_extractor
    from mimcl.model.distributed import gather
    from mimcl.pipeline.cores import worker_count

    spec, seed, precision = config.features, config.seed, config.precision
    if spec.startswith("mae:"):
        from mimcl.cli.encoders.mae_features import MaeFeatures

        return MaeFeatures.load(Path(spec.removeprefix("mae:"))), "requested"
    if precision == "auto":
        precision = "bfloat16" if gather("yes" if has_bfloat16() else "no")[0] == "yes" else "float32"
    build = partial(build_extractor, threads=worker_count(world.local_size), precision=precision)
    if spec != "auto" or world.size == 1:
        return build(spec, seed)
    found = build(spec, seed) if world.rank == 0 else None
    name = gather(found[0].name if found else "")[0]
    return found or build(name, seed)
