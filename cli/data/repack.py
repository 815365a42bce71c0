"""`mimcl repack`: pack the same images again, ordered by distance and with each distance in a KEY.json."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mimcl.cli.data.packing_ranks import default_workers, packing_ranks
from mimcl.cli.suggest import command, list_damage, prototypes_build, unless_default

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mimcl.curriculum.prototypes import PrototypeSet
    from mimcl.pipeline.shards import PackConfig, Ranks


def repack_command(
    data: Annotated[Path, typer.Argument(metavar="SHARDS", help="Folder of packed shards.")],
    out: Annotated[Path, typer.Option(help="Folder for the new shards.")],
    prototypes: Annotated[
        str,
        typer.Option(metavar="SET", help="Prototype set: its name beside the shards, or its folder, with a /."),
    ] = "default",
    bands: Annotated[
        int,
        typer.Option(min=1, help="Number of bands of similar distance to shuffle within (of at least 64 images)."),
    ] = 256,
    seed: Annotated[int, typer.Option(help="Seed of the shuffling.")] = 0,
    shard_mb: Annotated[int, typer.Option(min=1, help="Size of a shard in MB (10^6 bytes).")] = 256,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes, one shard at a time.", show_default="one per core and GB"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier packing in --out.")] = False,
) -> None:
    """Pack the images again, ordered by distance, each with a KEY.json of prototype, distance and label.

    Any webdataset reader can then start with typical images, or weight images. Bytes and distances stay the same.
    """
    from mimcl.cli.console import console, counted
    from mimcl.pipeline.shards import PackConfig

    config = PackConfig(shard_mb, workers=workers, cores=default_workers())
    with packing_ranks() as place:
        description = repack(data, out, prototypes, config, bands=bands, seed=seed, overwrite=overwrite, ranks=place)
    if place.rank:
        return
    train = description["splits"]["train"]
    console.print(f"{train['samples']:,} images, nearest first, in {counted(len(train['shards']), 'shard')}")
    name = set_name(prototypes)
    chosen = None if name == "default" else name
    train = command("train", curriculum="proto", data=unless_default(out), prototypes=chosen)
    console.print(f"wrote {out}/ with its prototypes · next: {train}")


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
    """Pack the train images of `data` into `out`, ordered by distance; return the content of the new dataset.json.

    A val split keeps its order. The prototype set is written for the new order, with the same clusters and distances
    and a record of its origin. After an interrupt the same call resumes. With several processes, each passes its
    `ranks`. Raises PrototypeError without a prototype set for these images, and DataError if one folder is inside the
    other or if images do not match the index.
    """
    import json

    import numpy as np

    from mimcl.cli.bars import image_bar
    from mimcl.cli.console import console
    from mimcl.curriculum.banded_order import band_order
    from mimcl.curriculum.prototypes import PrototypeSet
    from mimcl.pipeline.augment import hash64
    from mimcl.pipeline.dataset_json import read_dataset
    from mimcl.pipeline.files import DataError, remedy
    from mimcl.pipeline.index import ShardIndex
    from mimcl.pipeline.remote.urls import is_address
    from mimcl.pipeline.shards import SINGLE_PROCESS, PackConfig, pack
    from mimcl.pipeline.sources.item import Source
    from mimcl.pipeline.sources.packed import PackedItems

    ranks = ranks or SINGLE_PROCESS
    if is_address(data):
        raise DataError(f"{data} is not a local folder; download the shards first")
    splits = {split: ShardIndex.load(data, split) for split in read_dataset(data)["splits"]}
    index = splits.get("train") or ShardIndex.load(data)
    if any(split.classes != index.classes for split in splits.values()):
        raise DataError(f"the splits of {data} have different classes; pack them separately")
    root = index.root.resolve()
    if out.resolve().is_relative_to(root) or root.is_relative_to(out.resolve()):
        raise DataError(f"{out} and {data} are inside one another; give another --out")
    folder = index.prototypes_folder(prototypes)
    found = PrototypeSet.load(folder, index.fingerprint, build=prototypes_build(data, prototypes))
    name = set_name(prototypes)

    def json_of(row: int) -> bytes:
        fields = {"prototype": found.cluster[row], "distance": found.distance[row], "label": index.label[row]}
        return json.dumps({name: value.item() for name, value in fields.items()}).encode()

    order = band_order(found.distance, bands, seed, hash64)
    items = {"train": PackedItems(index, order, json_of)}
    if "val" in splits:
        items["val"] = PackedItems(splits["val"], np.arange(splits["val"].samples))
    packed_at = (index.root / "dataset.json").stat().st_mtime_ns
    source = Source(items, index.classes, modified=packed_at)
    show = console.print if ranks.rank == 0 else lambda line: None
    with image_bar("packing", -(-source.num_items // ranks.size), shown=ranks.rank == 0) as advance:
        config = config or PackConfig()
        description = pack(source, out, config, overwrite=overwrite, on_progress=advance, on_message=show, ranks=ranks)
    if lost := description["packed"]["rejected"]:
        raise DataError(
            f"{lost:,} images of {data} do not match its index (see {out / 'rejected.jsonl'}); restore them "
            f"({list_damage(data, decode=False)}), remove {out} and repack"
        )
    if ranks.rank == 0:
        try:
            _copy_set(found, folder, out / "prototypes" / name, order)
        except OSError as error:
            raise DataError(
                f"{out / 'prototypes'} cannot be written ({error.strerror or error}); "
                f"{remedy(error, 'free some space')} and run the same command again"
            ) from None
    return description


def set_name(prototypes: str) -> str:
    """Return the name of a copy of a prototype set, given by its name or path: the folder's, if that can be one."""
    from mimcl.pipeline.prototype_location import is_set_name

    name = Path(prototypes).resolve().name
    return name if is_set_name(name) else "default"


def _copy_set(found: PrototypeSet, folder: Path, copy: Path, order: NDArray[np.int64]) -> None:
    """Write the prototype set for the images in another order, beside their shards."""
    from mimcl.pipeline.files import atomic_folder
    from mimcl.pipeline.index import ShardIndex

    origin = {"index_fingerprint": found.info["index_fingerprint"], "name": folder.name}
    info = found.info | {"index_fingerprint": ShardIndex.load(copy.parents[1]).fingerprint, "origin": origin}
    columns = {name: getattr(found, name)[order] for name in ("cluster", "raw_distance", "distance")}
    gallery = folder / "gallery.png"
    with atomic_folder(copy, replace=True) as aside:
        replace(found, **columns, info=info).save(aside)
        if gallery.is_file():
            shutil.copyfile(gallery, aside / gallery.name)
