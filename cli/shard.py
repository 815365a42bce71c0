"""`mimcl shard`: pack images into webdataset shards."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from mimcl.pipeline.shards import PackConfig


def shard_command(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SRC", help="Folder with train/ (and val/), folder of class folders, or flat folder (no labels)."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for shards and indices.")] = Path("shards"),
    shard_mb: Annotated[int, typer.Option(min=1, help="Size of a shard in MB (10^6 bytes).")] = 256,
    short_side: Annotated[
        int, typer.Option(min=0, help="Shrink larger images to this short side in pixels; 0 keeps their bytes.")
    ] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Threads that read and check images.")] = os.cpu_count() or 1,
    holdout: Annotated[
        float, typer.Option(min=0, max=0.99, help="Share of the images put into a val split, 0 to 1.")
    ] = 0.0,
    decode: Annotated[bool, typer.Option("--decode", help="Decode every image fully, not only its header.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what was packed in --out before.")] = False,
) -> None:
    """Pack images into webdataset shards with an index; what is no usable image is left out and listed."""
    from mimcl.cli.console import console
    from mimcl.pipeline.shards import PackConfig

    config = PackConfig(shard_mb=shard_mb, short_side=short_side, workers=workers, decode=decode)
    description = shard(source, out, config, holdout=holdout, overwrite=overwrite)
    for split, part in description["splits"].items():
        size = sum(shard["bytes"] for shard in part["shards"]) / 1e6
        labels = f"{len(part['classes'])} classes" if part["classes"] else "no labels"
        console.print(f"{split}: {part['samples']:,} images, {labels}, {size:,.1f} MB, shards: {len(part['shards'])}")
    if rejected := description["packed"]["rejected"]:
        console.print(f"left out: {rejected:,} files, listed with reasons in {out / 'rejected.jsonl'}")
    data = "" if str(out) == "shards" else f" --data {out}"
    console.print(f"packed into {out}/ · next: mimcl prototypes build{data}")


def shard(
    source: Path, out: Path, config: PackConfig | None = None, *, holdout: float = 0.0, overwrite: bool = False
) -> dict[str, Any]:
    """Packs a folder of images into `out` with a progress bar; returns what dataset.json holds. Raises DataError.

    `holdout` is the share of the images, 0 to 1, that becomes a val split where the folder has none.
    """
    from mimcl.cli.console import console, image_bar
    from mimcl.pipeline.files import DataError
    from mimcl.pipeline.shards import PackConfig, pack
    from mimcl.pipeline.sources.folder import image_folder

    if out.resolve().is_relative_to(source.resolve()):
        raise DataError(f"{out} lies inside {source}, where its shards would be taken for images; give another --out")
    found = image_folder(source, holdout)
    for note in found.notes:
        console.print(note)
    with image_bar("packing", sum(map(len, found.splits.values()))) as advance:
        return pack(found, out, config or PackConfig(), overwrite=overwrite, on_progress=advance)
