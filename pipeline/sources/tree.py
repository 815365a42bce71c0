"""The files of a source as a tree of folders, whether they lie on a disk, in an archive or in a list."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from mimcl.pipeline.sources.junk import is_junk

_IMAGE_ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


class Tree(Protocol):
    """Folders are paths relative to the source, "" or ending with a slash; junk is skipped."""

    def files(self, folder: str) -> list[str]:
        """Return the names of the files in a folder, sorted."""

    def folders(self, folder: str) -> list[str]:
        """Return the names of the folders in a folder, sorted."""

    @property
    def skipped(self) -> set[str]:
        """Names of the junk that has been met so far; folders end with a slash."""


class PathTree:
    """The tree of an archive's or a list's files, of which `folders` may have none."""

    def __init__(self, files: Iterable[str], folders: Iterable[str] = ()) -> None:
        self._files: dict[str, list[str]] = {"": []}
        self._folders: dict[str, list[str]] = {"": []}
        self.skipped: set[str] = set()
        for path in folders:
            self._add_folder(f"{path}/")
        for path in files:
            folder, slash, name = path.rpartition("/")
            if self._add_folder(folder + slash):
                if is_junk(name):
                    self.skipped.add(name)
                else:
                    self._files[folder + slash].append(name)

    def _add_folder(self, folder: str) -> bool:
        """Add a folder and those around it; return False if it is or lies in junk."""
        if folder in self._files:
            return True
        names = folder[:-1].split("/")
        if junk := next(filter(is_junk, names), None):
            self.skipped.add(f"{junk}/")
            return False
        around = ""
        for name in names:
            inner = f"{around}{name}/"
            if inner not in self._files:
                self._folders[around].append(name)
                self._files[inner], self._folders[inner] = [], []
            around = inner
        return True

    def files(self, folder: str) -> list[str]:
        return sorted(self._files.get(folder, []))

    def folders(self, folder: str) -> list[str]:
        return sorted(self._folders.get(folder, []))


def walk(tree: Tree, folder: str = "") -> Iterator[str]:
    """Yield the paths of all files below a folder: those in it, then those of each of its folders."""
    waiting = [folder]
    while waiting:
        current = waiting.pop()
        yield from (current + name for name in tree.files(current))
        waiting += [f"{current}{name}/" for name in reversed(tree.folders(current))]


def has_image_ending(name: str) -> bool:
    """Whether a file is an image by its name; images of other names are recognized by their content."""
    return name.lower().endswith(_IMAGE_ENDINGS)
