"""A list of images, for folders that are too large to be listed: nothing is looked for, each line is a file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mimcl.pipeline.files import DataError, open_regular
from mimcl.pipeline.sources.folder import FileItems
from mimcl.pipeline.sources.item import Item, Source
from mimcl.pipeline.sources.labels import labels_of
from mimcl.pipeline.sources.layout import arrange, recordable

_LONGEST = 1 << 16  # bytes of a line


@dataclass(frozen=True)
class Listing:
    """The lines of a list: paths relative to a folder, slashes forward, with the class of each or of none."""

    path: Path
    labels: dict[str, int | str | None]

    @property
    def shards(self) -> bool:
        """Whether it lists shards."""
        return all(path.endswith(".tar") for path in self.labels)


def read_list(path: Path, root: Path) -> Listing:
    """Lines are PATH, or PATH, a tab and a class, its name or number; a path is relative to `root` or lies in it.

    Raises DataError for a list that is missing, empty or of mixed lines, and for a path outside of `root`.
    """
    labels: dict[str, int | str | None] = {}
    base = root.absolute()
    with_class = None
    for number, line in enumerate(_lines(path), 1):
        name, _, label = line.partition("\t")
        label = label.strip()
        if not (name := name.strip()):
            continue
        if with_class not in (None, bool(label)):
            raise DataError(f"{path}, line {number}: some lines have a class after a tab and some have none")
        with_class = bool(label)
        if name.startswith("/"):
            try:
                name = Path(name).relative_to(base).as_posix()
            except ValueError:
                raise DataError(f"{path}, line {number}: {name!r:.200} does not lie in {root}") from None
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if ".." in parts or "\0" in name or not parts:
            raise DataError(f"{path}, line {number}: {name!r:.200} does not lie in {root}")
        name = "/".join(parts)
        if name in labels:
            raise DataError(f"{path}, line {number}: {name!r:.200} has been there before; list every image once")
        labels[name] = None if not label else int(label) if _is_number(label) else recordable(label)
    if not labels:
        raise DataError(f"{path} lists nothing; give a path a line, relative to {root}")
    return Listing(path, labels)


def listed_images(root: Path, listing: Listing) -> Source:
    """The files that a list names, below `root`: splits and, where the list has no classes, labels by their folders.

    A file that does not exist is found out when it is read. Takes up to 950 bytes of memory a line. Raises DataError.
    """
    make = FileItems(root)
    source = arrange(root, listing.labels, (), make) if not _has_classes(listing) else _with_classes(listing, make)
    source.modified = make.modified
    return source


def _has_classes(listing: Listing) -> bool:
    return next(iter(listing.labels.values())) is not None


def _with_classes(listing: Listing, make: FileItems) -> Source:
    paths = sorted(listing.labels, key=lambda path: path.split("/"))
    prefixes = {"train": ""}
    if any(path.startswith("train/") for path in paths):
        prefixes = {"train": "train/", "val": "val/"}
    items: dict[str, list[Item]] = {}
    labels: dict[str, list[int | str | None]] = {}
    for split, prefix in prefixes.items():
        if found := [path for path in paths if path.startswith(prefix)]:
            items[split] = [make(path, recordable(path.removeprefix(prefix)), -1) for path in found]
            labels[split] = [listing.labels[path] for path in found]
    source = labels_of(items, labels, listing.path)
    if passed_over := len(paths) - sum(map(len, items.values())):
        source.notes.append(f"passed over beside train/ and val/: {passed_over:,} lines")
    return source


def _is_number(text: str) -> bool:
    return text.removeprefix("-").isdecimal() and len(text) < 20


def _lines(path: Path) -> Iterator[str]:
    try:
        with open_regular(path) as file:
            while line := file.readline(_LONGEST + 1):
                if len(line) > _LONGEST:
                    raise DataError(f"the list {path} has a line of over {_LONGEST:,} bytes; it is no list of paths")
                # As the names of files are read: whatever their bytes are.
                yield line.decode("utf-8", "surrogateescape").removeprefix("\ufeff").rstrip("\r\n")
    except OSError as error:
        raise DataError(f"the list {path} cannot be read: {error.strerror or error}") from None
