"""Make a source of an archive's member names, as if the archive were unpacked."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

from mimcl.pipeline.sources.item import Item, Source
from mimcl.pipeline.sources.layout import source_from_paths
from mimcl.pipeline.sources.names import to_utf8

_MACOS_METADATA = "__MACOSX"  # a folder that macOS adds to archives


def archive_source(
    path: Path, members: Iterable[tuple[str, str, Any]], item: Callable[[str, int, Any], Item], modified: int
) -> Source:
    """Return the source of the archive at `path`, last modified at `modified` (ns since 1970).

    A member is (name, kind, place): kind is "file", "folder" or "other" (skipped), place is passed to
    `item(name, label, place)`. If a name occurs more than once the last member counts, as in unpacking. A single folder
    around everything, as `tar -cf x.tar FOLDER` makes it, is removed from the names if it holds train/ or class folders
    with all images. Raises DataError if nothing is left.
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
        elif parts and parts[0] != _MACOS_METADATA:
            if kind == "file":
                places["/".join(parts)] = place
            else:
                folders.add("/".join(parts))
    prefix = _common_folder(places, folders)
    source = source_from_paths(
        path,
        [name.removeprefix(prefix) for name in places],
        [name.removeprefix(prefix) for name in folders if name + "/" != prefix],
        lambda name, recorded, label: item(recorded, label, places[prefix + name]),
    )
    if prefix:
        source.notes.append(f"{path.name}: everything is in {to_utf8(prefix)}, removed from the names")
    if others:
        source.notes.append(f"skipped in {path.name}: {others:,} links, devices and sparse files")
    if outside:
        source.notes.append(f"skipped in {path.name}: {outside:,} names that lead out of the archive")
    source.modified = modified
    return source


def _common_folder(files: Collection[str], folders: set[str]) -> str:
    """Return the folder around everything with its slash, or an empty string if its name has to be kept."""
    top = {name.partition("/")[0] for name in (*files, *folders)}
    if len(top) != 1 or not all("/" in name for name in files):
        return ""
    prefix = top.pop() + "/"
    if any(name.startswith(f"{prefix}train/") for name in (*files, *folders)):
        return prefix
    is_deep = [name.count("/") > 1 for name in files]
    direct = (name for name, deep in zip(files, is_deep, strict=True) if not deep)
    has_class_folders = prefix not in ("train/", "val/") and any(is_deep) and not any(map(_has_image_ending, direct))
    return prefix if has_class_folders else ""


def _has_image_ending(name: str) -> bool:
    return name.lower().endswith((".jpg", ".jpeg", ".png", ".webp"))
