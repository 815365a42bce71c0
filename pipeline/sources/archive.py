"""What the names in an archive say: as if it were unpacked, but for names that no folder of images has."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

from mimcl.pipeline.sources.item import Item, Source
from mimcl.pipeline.sources.layout import arrange, recordable

_RUBBISH = "__MACOSX"  # beside what some programs pack


def archived(
    path: Path, members: Iterable[tuple[str, str, Any]], item: Callable[[str, int, Any], Item], modified: int
) -> Source:
    """The source of an archive at `path` that was changed at `modified` (ns since 1970), of its members.

    A member is its name, "file", "folder" or "other" (passed over), and its place, for `item(name, label, place)`. Of
    members with one name the last counts, as in unpacking. One folder around a train/ or around folders that hold all
    images, as `tar -cf x.tar FOLDER` makes it, is looked through. Raises DataError where nothing is left.
    """
    places: dict[str, Any] = {}
    folders, others, outside = set(), 0, 0
    for name, kind, place in members:
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if name.startswith("/") or ".." in parts or "\0" in name:
            outside += 1
        elif kind == "other":
            others += 1
        elif parts and parts[0] != _RUBBISH:
            if kind == "file":
                places["/".join(parts)] = place
            else:
                folders.add("/".join(parts))
    around = _around(places, folders)
    source = arrange(
        path,
        [name.removeprefix(around) for name in places],
        [name.removeprefix(around) for name in folders if name + "/" != around],
        lambda name, recorded, label: item(recorded, label, places[around + name]),
    )
    if around:
        source.notes.append(f"{path.name}: all lies in {recordable(around)}, which is left out of the names")
    if others:
        source.notes.append(f"passed over in {path.name}: links, devices and sparse files, {others:,} in number")
    if outside:
        source.notes.append(f"passed over in {path.name}: names that lead out of it, {outside:,} in number")
    source.modified = modified
    return source


def _around(files: Collection[str], folders: set[str]) -> str:
    """The folder, with a slash, that holds everything, and a train/, or no images of its own; empty for none."""
    top = {name.partition("/")[0] for name in (*files, *folders)}
    if len(top) != 1 or not all("/" in name for name in files):
        return ""
    around = top.pop() + "/"
    if any(name.startswith(f"{around}train/") for name in (*files, *folders)):
        return around
    deeper = [name.count("/") > 1 for name in files]
    own = (name for name, below in zip(files, deeper, strict=True) if not below)
    of_classes = around not in ("train/", "val/") and any(deeper) and not any(map(_is_called_an_image, own))
    return around if of_classes else ""


def _is_called_an_image(name: str) -> bool:
    return name.lower().endswith((".jpg", ".jpeg", ".png", ".webp"))
