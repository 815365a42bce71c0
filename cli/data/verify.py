"""`mimcl verify`: check a packed data set and its prototype sets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from mimcl.cli.data.prototype_sets import prototype_set_folders, verify_prototype_sets

_MAX_SHOWN = 20  # findings


def verify_command(
    data: Annotated[str, typer.Argument(metavar="SHARDS", help="Folder of packed shards.")] = "shards",
    prototypes: Annotated[
        list[Path] | None, typer.Option(metavar="FOLDER", help="Check this prototype set as well; may be repeated.")
    ] = None,
    decode: Annotated[bool, typer.Option("--decode", help="Decode every image fully, not only its header.")] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Threads.", show_default="one per core")] = None,
) -> None:
    """Check shards, indices and prototype sets against their checksums and each other."""
    from mimcl.cli.console import console, counted
    from mimcl.cli.suggest import command, unless_default
    from mimcl.pipeline.dataset_json import read_dataset
    from mimcl.pipeline.files import DataError
    from mimcl.pipeline.remote.urls import shown, url_of

    if url_of(data):
        raise DataError(
            f"{shown(data)} is not a local folder; download it first (remote images are checked whenever they are read)"
        )
    sets = [*prototype_set_folders(Path(data)), *(prototypes or ())]
    findings = verify(Path(data), decode, workers, prototypes or ())
    for finding in findings[:_MAX_SHOWN]:
        console.print(finding)
    if len(findings) > _MAX_SHOWN:
        console.print(f"... and {len(findings) - _MAX_SHOWN:,} more")
    if findings:
        again = command("shard", "SRC", out=unless_default(data), overwrite=True)
        raise DataError(f"{data}: {len(findings):,} findings; restore the files, or pack again with `{again}`")
    parts = read_dataset(data)["splits"].values()
    images, shards = sum(part["samples"] for part in parts), sum(len(part["shards"]) for part in parts)
    beside = f" and {counted(len(sets), 'prototype set')}" if sets else ""
    console.print(f"{counted(images, 'image')} in {counted(shards, 'shard')}{beside}: all checks passed")


def verify(data: Path, decode: bool = False, workers: int | None = None, prototypes: Sequence[Path] = ()) -> list[str]:
    """Return one line for each problem of a packed data set, of its prototype sets, and of those in `prototypes`.

    `workers` is the number of threads, by default one per core. Raises DataError if there is no data set.
    """
    from mimcl.cli.bars import image_bar
    from mimcl.pipeline.cores import worker_count
    from mimcl.pipeline.dataset_json import read_dataset
    from mimcl.pipeline.verify import verify as verify_shards

    splits = read_dataset(data)["splits"]
    sets = [*prototype_set_folders(data), *prototypes]
    with image_bar("verifying", sum(part["samples"] for part in splits.values())) as advance:
        findings = verify_shards(data, decode, workers or worker_count(), advance)
    return findings + verify_prototype_sets(sets, data, splits.get("train"))
