"""Make a source of an archive's member names, as if the archive were unpacked."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from mimcl.pipeline.files import DataError
from mimcl.pipeline.sources.archives.unpacked import unpacked
from mimcl.pipeline.sources.item import Item, Source
from mimcl.pipeline.sources.layout import source_from_tree
from mimcl.pipeline.sources.tree import PathTree


def archive_source(
    path: Path, members: Iterable[tuple[str, str, Any]], item: Callable[[str, int, Any], Item], modified: int
) -> Source:
    """Return the source of the archive at `path`, last modified at `modified` (ns since 1970).

    `members` are those of `unpacked`; the place of a file is passed to `item(name, label, place)`. Raises DataError if
    nothing is left.
    """
    found = unpacked(path.name, members)
    if not found.files:
        raise DataError("; ".join([f"{path} has no images", *found.notes]))
    try:
        source = source_from_tree(
            path,
            PathTree(found.files, found.folders),
            lambda name, recorded, label: item(recorded, label, found.files[name]),
        )
    except DataError as error:
        raise DataError("; ".join([str(error), *found.notes])) from None
    source.notes += found.notes
    source.modified = modified
    return source
