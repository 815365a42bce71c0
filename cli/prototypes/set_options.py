"""Options of the commands that make prototype sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from mimcl.cli.help.commands import option

IMAGES, CLUSTERING, SET = "Images", "Clustering", "Set"  # headings of the help
DEFAULT = "default"  # name

Data = Annotated[str, option(IMAGES, "Folder of shards, or s3://, gs://, hf://.")]
Name = Annotated[str | None, option(SET, "Name of the set beside the shards.", DEFAULT)]
Out = Annotated[Path | None, option(SET, "Folder for the set instead, if the shards are read-only.")]
Overwrite = Annotated[bool, option(SET, "Replace a set of the same name.", None, "--overwrite")]


def set_name(name: str | None, out: str | Path | None) -> str:
    """Return the name of a set from --name and --out. Raises ConfigError if both are given, or it can be none."""
    from mimcl.cli.errors import ConfigError
    from mimcl.pipeline.prototype_location import is_set_name

    if name is not None and out is not None:
        raise ConfigError("--name is for a set beside the shards, --out for another folder; give one of them")
    name = DEFAULT if name is None else name
    if not is_set_name(name):
        raise ConfigError(f"--name is {name!r}; use letters, digits, dots, - and _")
    return name


def written(data: str, name: str | None, out: Path | None) -> str:
    """Return the line that says where a set is, and how to train with it."""
    from mimcl.cli.suggest import command, unless_default
    from mimcl.pipeline.prototype_location import as_option
    from mimcl.pipeline.remote.urls import shown

    chosen = as_option(out) if out else None if name == DEFAULT else name
    train = command("train", curriculum="proto", data=unless_default(shown(data)), prototypes=chosen)
    return f"wrote {out or f'{shown(data)}/prototypes/{name or DEFAULT}'}/ with gallery.png · next: {train}"
