"""Read a list of images or shards, one path a line, for folders that are too large to scan."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

from mimcl.pipeline.files import DataError, open_regular
from mimcl.pipeline.sources.folder import FileItemFactory
from mimcl.pipeline.sources.item import Item, Source
from mimcl.pipeline.sources.junk import junk_note
from mimcl.pipeline.sources.labels import label_items
from mimcl.pipeline.sources.layout import Layout, source_from_tree
from mimcl.pipeline.sources.names import from_fs, to_fs, to_utf8
from mimcl.pipeline.sources.shard_files import is_tar
from mimcl.pipeline.sources.tree import PathTree, walk

_MAX_LINE_BYTES = 1 << 16


@dataclass(frozen=True)
class Listing:
    """The lines of a list: paths relative to a folder, with forward slashes; either all or none have a class."""

    path: Path
    labels: dict[str, int | str | None]

    @property
    def lists_shards(self) -> bool:
        """Whether the paths are tars by their names, even compressed ones, which cannot be used."""
        return is_tar(next(iter(self.labels)))


def read_list(path: Path, root: Path) -> Listing:
    """Read a list of lines PATH, or PATH, a tab and the name or number of a class; paths are relative or below `root`.

    Raises DataError if the list is missing, empty or mixes kinds of lines or of files, or if a path is outside `root`.
    """
    labels: dict[str, int | str | None] = {}
    base = PurePath(from_fs(str(root.absolute())))
    with_class = None
    for number, line in enumerate(_lines(path), 1):
        if "\0" in line:
            raise DataError(f"{path}, line {number} has a NUL character (UTF-16?); convert the list to UTF-8")
        name, *cells = (cell.strip() for cell in line.rstrip().split("\t"))
        label = "".join(cells[:1])
        if not name:
            continue
        if len(cells) > 1:
            raise DataError(f"{path}, line {number} has {len(cells) + 1} columns; keep the path and the class")
        if with_class not in (None, bool(label)):
            raise DataError(f"{path}, line {number}: some lines have a class and some do not; give all or none")
        with_class = bool(label)
        if name.startswith("/"):
            try:
                name = PurePath(name).relative_to(base).as_posix()
            except ValueError:
                raise DataError(f"{path}, line {number}: {name!r:.200} is not in {root}") from None
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if ".." in parts or not parts:
            raise DataError(f"{path}, line {number}: {name!r:.200} is not in {root}")
        name = "/".join(parts)
        if not labels:
            _require_path(path, number, root, name)
        if name in labels:
            raise DataError(f"{path}, line {number}: {name!r:.200} is listed twice; list every image once")
        labels[name] = None if not label else int(label) if _is_number(label) else to_utf8(label)
    shards = sum(map(is_tar, labels))
    if 0 < shards < len(labels):
        raise DataError(f"{path} lists shards and other files; give a list of one kind")
    if not labels:
        raise DataError(f"{path} is empty; give one path a line, relative to {root}")
    return Listing(path, labels)


def _require_path(path: Path, number: int, root: Path, name: str) -> None:
    """Refuse a first line that is a heading, or whose class is not behind a tab: no file could be read."""
    if os.path.lexists(root / to_fs(name)):
        return
    for end in (place for place, character in enumerate(name) if character in " ,;"):
        if os.path.isfile(root / to_fs(name[:end])):
            raise DataError(
                f"{path}, line {number}: write a tab between {name[:end]!r:.200} and {name[end + 1 :]!r:.80}"
            )
    if not set(name) & set("./"):
        raise DataError(f"{path}, line {number}: {name!r:.80} is not in {root}; if it is a heading, remove that line")


def listed_images(root: Path, listing: Listing) -> Source:
    """Return the listed files; splits and, unless the list has classes, labels come from their folders below `root`.

    Files that do not exist are rejected when they are read. Takes up to 950 bytes of memory a line. Raises DataError.
    """
    make = FileItemFactory(root)
    tree = PathTree(listing.labels)
    has_classes = next(iter(listing.labels.values())) is not None
    source = _with_classes(root, listing, tree, make) if has_classes else source_from_tree(root, tree, make)
    source.modified = make.modified
    return source


def _with_classes(root: Path, listing: Listing, tree: PathTree, make: FileItemFactory) -> Source:
    layout = Layout(root, tree, make)
    items: dict[str, list[Item]] = {}
    labels: dict[str, list[int | str | None]] = {}
    for split, folder in layout.split_folders().items():
        if found := sorted(walk(tree, folder), key=lambda path: path.split("/")):
            items[split] = [make(path, to_utf8(path.removeprefix(folder)), -1) for path in found]
            labels[split] = [listing.labels[path] for path in found]
    source = label_items(items, labels, listing.path)
    source.notes[:0] = layout.notes + junk_note(map(to_utf8, tree.skipped))
    if skipped := len(listing.labels) - source.num_items:
        source.notes.append(f"skipped in the list: {skipped:,} lines")
    return source


def _is_number(text: str) -> bool:
    return text.removeprefix("-").isdecimal() and len(text) < 20


def _lines(path: Path) -> Iterator[str]:
    try:
        with open_regular(path) as file:
            while line := file.readline(_MAX_LINE_BYTES + 1):
                if len(line) > _MAX_LINE_BYTES:
                    raise DataError(
                        f"the list {path} has a line of over {_MAX_LINE_BYTES:,} bytes; give one path a line"
                    )
                # As `from_fs` does: names may hold any bytes.
                yield line.decode("utf-8", "surrogateescape").removeprefix("\ufeff").rstrip("\r\n")
    except OSError as error:
        raise DataError(f"the list {path} cannot be read: {error.strerror or error}") from None
