"""`mimcl shard --adopt`: index the shards of another program in place."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mimcl.cli.errors import ConfigError
from mimcl.pipeline.files import DataError

if TYPE_CHECKING:
    from mimcl.cli.data.sources import SourceOptions
    from mimcl.pipeline.shards import PackConfig


def refuse_packing(folder: Path, out: Path | None, config: PackConfig, options: SourceOptions) -> None:
    """Raise ConfigError for options of packing, since adopted shards are not rewritten."""
    given = {
        "--short-side": config.short_side,
        "--dedup": config.dedup,
        "--holdout": options.holdout,
        "--val": options.val,
        "--val-labels": options.val_labels,
        "--image-column": options.image_column,
        "--label-column": options.label_column,
        "--source-kind": options.kind and options.kind != "webdataset",
    }
    if wrong := [name for name, value in given.items() if value]:
        raise ConfigError(f"--adopt does not rewrite shards, but {wrong[0]} would; give one of them only")
    if out is not None and out.resolve() != folder.resolve():
        raise ConfigError(f"--adopt writes the index into {folder}, beside the shards; leave out --out")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("--adopt runs in one process; start it without torchrun")


def adopt_shards(
    folder: Path, options: SourceOptions, *, workers: int = 1, decode: bool = False, overwrite: bool = False
) -> dict[str, Any]:
    """Index the webdataset shards in `folder`, or those of them in a list, with a progress bar.

    Returns the content of dataset.json. Raises DataError.
    """
    from mimcl.cli.bars import image_bar
    from mimcl.cli.console import console
    from mimcl.pipeline.adopt import adopt
    from mimcl.pipeline.sources.label_files.class_list import read_class_list
    from mimcl.pipeline.sources.listed import read_list
    from mimcl.pipeline.sources.names import from_fs, to_utf8
    from mimcl.pipeline.sources.shard_files import find_shards
    from mimcl.pipeline.sources.webdataset import LABEL_KEY

    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; give the folder of the shards")
    if options.list_file:
        listing = read_list(options.list_file, folder)
        if not listing.lists_shards:
            raise DataError(f"{options.list_file} lists files that are not shards (.tar); list only shards for --adopt")
        shards = [folder / name for name in listing.labels]
    else:
        found = find_shards(folder)
        shards = [path for path in found if path.parent == folder]
        below = [path for path in found if path.parent != folder]
        if not shards:
            hint = "adopt its subfolders one by one, or pack it" if below else "leave out --adopt"
            raise DataError(f"{folder} has no shards (.tar) at its top level; {hint}")
        if below:
            raise DataError(
                f"{folder} has shards at its top level and in subfolders ({to_utf8(from_fs(str(below[0])))}); adopted "
                "shards must be in one folder, so move them, or name the ones to adopt with --list"
            )
    classes = read_class_list(options.classes) if options.classes else None
    with image_bar("reading", None) as advance:
        description, notes = adopt(
            folder,
            shards,
            classes,
            label_key=options.label_key or LABEL_KEY,
            workers=workers,
            decode=decode,
            overwrite=overwrite,
            on_progress=advance,
        )
    for note in notes:
        console.print(note)
    return description
