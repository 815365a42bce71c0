"""Build a prototype set: features or losses of all images in several processes, resumable, and what is made of them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mimcl.cli.prototypes.build_config import BuildConfig

if TYPE_CHECKING:
    from mimcl.curriculum.prototypes import PrototypeSet
    from mimcl.model.world import World

_TIMEOUT_S = 8 * 3600.0  # for waiting for other ranks' features and for rank 0, which does the clustering


def build(
    data: str | Path = "shards", config: BuildConfig = BuildConfig(), world: World | None = None
) -> tuple[Path, PrototypeSet]:
    """Build and store a set with its gallery; return its folder and the set, with a distance for each sample.

    The ranks of `world` share the data; their number does not change the result. Intermediate results are kept in
    files, from which a stopped build is resumed: features take 4 N D bytes (2 GB for ImageNet with DINO ViT-S), losses
    4 N, and are removed at the end. They are beside the set's folder; for shards at a URL without `config.out` in the
    cache, and the set is uploaded beside the shards.
    Raises PrototypeError for a set that exists or cannot be built, DataError for shards that cannot be read,
    CheckpointError for a run without the weights that it needs.
    """
    from mimcl.cli.encoders.saved import trained_on
    from mimcl.cli.prototypes.destination import Destination
    from mimcl.cli.prototypes.rank_zero import on_first_rank
    from mimcl.curriculum.prototypes import PrototypeError, PrototypeSet
    from mimcl.model.world import World
    from mimcl.pipeline.index import ShardIndex

    world = world or World()
    index = ShardIndex.load(data)
    destination = Destination(index, config.name, config.out, config.overwrite)
    destination.require_writable()
    if destination.uploads and world.size > world.local_size:
        raise PrototypeError(
            f"{index.shown} is a URL, so the machines share no folder to build in; use one machine, or give a shared "
            "one with --out"
        )
    folder = destination.folder
    sets = folder.parent
    destination.require_free()
    if config.k is not None and config.k > index.samples / 2:
        raise PrototypeError(
            f"--k is {config.k}, more than half of the {index.samples} images in {index.shown}; give fewer"
        )
    if config.scored_by:
        trained_on(config.scored_by)

    # Only now: these import torch, which takes seconds, and what needs none has been refused by here.
    from mimcl.cli.encoders.bad_images import BadImages
    from mimcl.cli.encoders.lock import lock
    from mimcl.cli.encoders.split_features import BATCH, fill, open_decoder, sample_images
    from mimcl.cli.prototypes.clustered import cluster_images
    from mimcl.cli.prototypes.losses import set_of_losses
    from mimcl.cli.prototypes.measures import measure_features, measure_loss
    from mimcl.cli.prototypes.workspace import BuildFolder
    from mimcl.model.distributed import agree, barrier, connected

    building = BuildFolder(sets / f".{folder.name}.building", index)
    mine = range(world.rank, len(building.features.chunks), world.size)

    def begin() -> None:
        destination.require_free()  # another process may have built it while this one waited for the lock
        building.folder.mkdir(exist_ok=True)  # here, so that a folder that is not writable is noticed at once

    with ExitStack() as session:
        session.enter_context(connected(world, world.device(), _TIMEOUT_S))
        on_first_rank(world, lambda: sets.mkdir(parents=True, exist_ok=True), sets)
        session.enter_context(lock(sets, world))
        on_first_rank(world, begin, sets)
        scored_by = config.scored_by
        measure = measure_loss(scored_by, config, world) if scored_by else measure_features(config, world)
        extractor = measure.extractor
        decoder = open_decoder(config.decoder, extractor.image_size, index, world=world)
        made_from = measure.settings | {
            "index_fingerprint": index.fingerprint,
            "shards": [len(part) for part in building.features.chunks],
            "decoder": decoder.name,
            "batch": BATCH,
        }
        bad = BadImages(index, config.max_bad)
        images = partial(sample_images, index, decoder, extractor.fit_images, bad)
        on_first_rank(world, lambda: building.start(made_from, extractor, images), sets)
        agree("the features' settings", building.load_constants(extractor))
        label = measure.label if world.rank == 0 else None
        fill(index, [building.features], [measure.of_batch], decoder, mine, label, bad)
        barrier()
        on_first_rank(world, lambda: bad.require_few(building.bad_images()), sets)
        make_set: Callable[[], PrototypeSet]
        if scored_by:
            make_set = partial(set_of_losses, index, building, measure)
        else:
            make_set = cluster_images(index, config, building, measure, mine, world)

        def finish() -> None:
            destination.write(make_set())
            building.remove()

        on_first_rank(world, finish, sets)
    return folder, PrototypeSet.load(folder, index.fingerprint)
