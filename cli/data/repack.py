"""`mimcl repack`: the same images in the order of their distance, each with its distance beside it."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mimcl.cli.data.packing_ranks import packing_ranks

if TYPE_CHECKING:
    from mimcl.pipeline.shards import PackConfig, Ranks


def repack_command(
    data: Annotated[Path, typer.Argument(metavar="SHARDS", help="Folder of shards.")],
    out: Annotated[Path, typer.Option(help="Folder for the new shards.")],
    prototypes: Annotated[str, typer.Option(help="Name of the prototype set.")] = "default",
    bands: Annotated[
        int, typer.Option(min=1, help="Stretches of like distance that are shuffled; of 64 images or more.")
    ] = 256,
    seed: Annotated[int, typer.Option(help="Of the shuffling.")] = 0,
    shard_mb: Annotated[int, typer.Option(min=1, help="Size of a shard in MB (10^6 bytes).")] = 256,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that pack, a shard at a time. (default: one a core)")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what was packed in --out before.")] = False,
) -> None:
    """Pack the images again in the order of their distance, with a KEY.json of prototype, distance and label each.

    So any reader of webdataset can go from typical to untypical images, or weigh them. Bytes and distances stay.
    """
    from mimcl.cli.console import console
    from mimcl.cli.errors import ConfigError
    from mimcl.pipeline.cores import worker_count
    from mimcl.pipeline.shards import PackConfig

    if not re.fullmatch(r"[\w-][\w.-]*", prototypes):
        raise ConfigError(f"--prototypes {prototypes!r} is no name of a set; `mimcl inspect {data}` lists them")
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    config = PackConfig(shard_mb, workers=workers or worker_count(local_size))
    with packing_ranks() as place:
        description = repack(data, out, prototypes, config, bands=bands, seed=seed, overwrite=overwrite, ranks=place)
    if place.rank:
        return
    train = description["splits"]["train"]
    console.print(f"{train['samples']:,} images, nearest first, in {len(train['shards']):,} shards")
    named = "" if prototypes == "default" else f" --set curriculum.prototypes={prototypes}"
    console.print(f"wrote {out}/ with its prototypes · next: mimcl train --curriculum proto --data {out}{named}")


def repack(
    data: Path,
    out: Path,
    prototypes: str = "default",
    config: PackConfig | None = None,
    *,
    bands: int = 256,
    seed: int = 0,
    overwrite: bool = False,
    ranks: Ranks | None = None,
) -> dict[str, Any]:
    """Packs the train images of `data` into `out` by their distance in a set; returns what its dataset.json holds.

    A val split keeps its order. The set beside `out` has the same clusters and distances, image by image, and says
    where it comes from. Interrupted, the same call goes on. Of several processes each is given its `ranks`. Raises
    PrototypeError without a set for these images, DataError for folders that lie in one another and for images that
    are not what was packed.
    """
    import json

    import numpy as np

    from mimcl.cli.console import console, image_bar
    from mimcl.curriculum.banded_order import band_order
    from mimcl.curriculum.prototypes import PrototypeSet
    from mimcl.pipeline.augment import hash64
    from mimcl.pipeline.dataset_json import read_dataset
    from mimcl.pipeline.files import DataError
    from mimcl.pipeline.index import ShardIndex
    from mimcl.pipeline.remote.urls import is_address
    from mimcl.pipeline.shards import ALONE, PackConfig, pack
    from mimcl.pipeline.sources.item import Source
    from mimcl.pipeline.sources.packed import PackedItems

    ranks = ranks or ALONE
    if is_address(data):
        raise DataError(f"{data} is not on this machine: repack reads a folder; copy the shards here first")
    splits = {split: ShardIndex.load(data, split) for split in read_dataset(data)["splits"]}
    index = splits.get("train") or ShardIndex.load(data)
    if any(split.classes != index.classes for split in splits.values()):
        raise DataError(f"the splits of {data} have other classes than one another; they cannot be packed as one set")
    known = index.root.resolve()
    if out.resolve().is_relative_to(known) or known.is_relative_to(out.resolve()):
        raise DataError(f"{out} and {data} lie in one another; give another --out")
    found = PrototypeSet.load(index.root / "prototypes" / prototypes, index.fingerprint)

    def beside(row: int) -> bytes:
        said = {"prototype": found.cluster[row], "distance": found.distance[row], "label": index.label[row]}
        return json.dumps({name: value.item() for name, value in said.items()}).encode()

    order = band_order(found.distance, bands, seed, hash64)
    items = {"train": PackedItems(index, order, beside)}
    if "val" in splits:
        items["val"] = PackedItems(splits["val"], np.arange(splits["val"].samples))
    packed_at = (index.root / "dataset.json").stat().st_mtime_ns
    source = Source(items, index.classes, modified=packed_at)
    say = console.print if ranks.rank == 0 else lambda line: None
    with image_bar("packing", -(-source.num_items // ranks.size), shown=ranks.rank == 0) as advance:
        config = config or PackConfig()
        description = pack(source, out, config, overwrite=overwrite, on_progress=advance, say=say, ranks=ranks)
    if lost := description["packed"]["rejected"]:
        raise DataError(
            f"{lost:,} images of {data} are not what was packed, listed in {out / 'rejected.jsonl'}: restore them "
            f"(`mimcl verify {data}` finds them all), remove {out} and repack"
        )
    if ranks.rank == 0:
        try:
            _copy_set(found, index.root / "prototypes" / prototypes, out, order)
        except OSError as error:
            raise DataError(
                f"{out / 'prototypes'} cannot be written to ({error.strerror or error}); make room and go on with the "
                "same command"
            ) from None
    return description


def _copy_set(found: Any, folder: Path, out: Path, order: Any) -> None:
    """The set for the images in another order."""
    from mimcl.curriculum.prototypes import PrototypeSet
    from mimcl.pipeline.files import atomic_folder
    from mimcl.pipeline.index import ShardIndex

    origin = {"index_fingerprint": found.info["index_fingerprint"], "name": folder.name}
    info = found.info | {"index_fingerprint": ShardIndex.load(out).fingerprint, "origin": origin}
    columns = [column[order] for column in (found.cluster, found.raw_distance, found.distance)]
    gallery = folder / "gallery.png"
    with atomic_folder(out / "prototypes" / folder.name, replace=True) as aside:
        PrototypeSet(*columns, found.centroids, info=info).save(aside)
        if gallery.is_file():
            shutil.copyfile(gallery, aside / gallery.name)
