"""Make a source of an archive's member names, as if the archive were unpacked."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from mimcl.pipeline.sources.item import Item, Source
from mimcl.pipeline.sources.layout import source_from_tree
from mimcl.pipeline.sources.tree import PathTree


def archive_source(
    path: Path, members: Iterable[tuple[str, str, Any]], item: Callable[[str, int, Any], Item], modified: int
) -> Source:
    """Return the source of the archive at `path`, last modified at `modified` (ns since 1970).

    A member is (name, kind, place): kind is "file", "folder" or "other" (skipped), place is passed to
    `item(name, label, place)`. If a name occurs more than once the last member counts, as in unpacking. Raises
    DataError if nothing is left.
    """
    places: dict[str, Any] = {}
    folders: set[str] = set()
    others = outside = 0
    for name, kind, place in members:
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if name.startswith("/") or ".." in parts or "\0" in name:
            outside += 1
        elif kind == "other":
            others += 1
        elif parts and kind == "file":
            places["/".join(parts)] = place
        elif parts:
            folders.add("/".join(parts))
    source = source_from_tree(
        path, PathTree(places, folders), lambda name, recorded, label: item(recorded, label, places[name])
    )
    if others:
        source.notes.append(f"skipped in {path.name}: {others:,} links, devices and sparse files")
    if outside:
        source.notes.append(f"skipped in {path.name}: {outside:,} names that lead out of the archive")
    source.modified = modified
    return source
