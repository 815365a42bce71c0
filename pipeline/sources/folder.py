"""A folder of images as a source: ImageNet's layout, class folders, or flat."""

from __future__ import annotations

import os
from pathlib import Path

from mimcl.pipeline.files import DataError
from mimcl.pipeline.sources.holdout import hold_out
from mimcl.pipeline.sources.item import FileItem, Source
from mimcl.pipeline.sources.junk import is_junk
from mimcl.pipeline.sources.layout import source_from_tree
from mimcl.pipeline.sources.names import from_fs, to_fs, to_utf8


def image_folder(root: Path, holdout: float = 0.0) -> Source:
    """Return the images of a folder with train/ (and val/), with class folders, or flat without labels.

    `holdout` moves that share of a source without val/ into a val split, see `hold_out`. Raises DataError if the folder
    is missing, has no images, can be read in two ways, or cannot be listed.
    """
    return hold_out(tree_source(FolderTree(root)), holdout, root)


def tree_source(tree: FolderTree) -> Source:
    """Return the images of a folder that may have been listed in part already. Raises DataError."""
    make = FileItemFactory(tree.root)
    source = source_from_tree(tree.root, tree, make)
    source.modified = make.modified
    return source


class FolderTree:
    """The files below a folder, each folder listed once, when it is first looked into.

    Symbolic links are followed, except into a parent folder. Raises DataError for a folder that cannot be listed.
    """

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise DataError(f"{root} is not a folder; give a folder of images, of class folders, or with train/ in it")
        self.root = root
        self.skipped: set[str] = set()
        self._listed: dict[str, tuple[list[str], list[str]]] = {}  # files and folders of each folder
        self._identities: dict[str, tuple[int, int]] = {}  # device and inode

    def files(self, folder: str) -> list[str]:
        return self._list(folder)[0]

    def folders(self, folder: str) -> list[str]:
        return self._list(folder)[1]

    def _list(self, folder: str) -> tuple[list[str], list[str]]:
        if (listed := self._listed.get(folder)) is None:
            listed = self._listed[folder] = self._scan(folder)
        return listed

    def _scan(self, folder: str) -> tuple[list[str], list[str]]:
        path = self.root / to_fs(folder)
        files: list[str] = []
        folders: list[str] = []
        try:
            if self._is_loop(folder, path):
                return [], []
            with os.scandir(path) as entries:
                for entry in entries:
                    name, is_folder = from_fs(entry.name), _is_folder(entry)
                    if is_junk(name):
                        self.skipped.add(f"{name}/" if is_folder else name)
                    else:
                        (folders if is_folder else files).append(name)
        except OSError as error:
            raise DataError(f"{to_utf8(from_fs(str(path)))} cannot be listed: {error.strerror}") from None
        return sorted(files), sorted(folders)

    def _is_loop(self, folder: str, path: Path) -> bool:
        """Whether links have led back into a folder around this one."""
        status = path.stat()
        identity = self._identities[folder] = status.st_dev, status.st_ino
        around = folder
        while around:
            around = around[: around.rfind("/", 0, -1) + 1]
            if self._identities.get(around) == identity:
                return True
        return False


class FileItemFactory:
    """Make items of the files below a folder, and keep the time of the last modification."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.modified = 0  # ns since 1970

    def __call__(self, path: str, name: str, label: int) -> FileItem:
        file = self._root / to_fs(path)
        try:
            status = file.stat()
        except (OSError, ValueError):  # a broken link or an invalid path; reading it reports the error
            return FileItem(name, label, 0, file)
        self.modified = max(self.modified, status.st_mtime_ns)
        return FileItem(name, label, status.st_size, file)


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a broken link; reading it reports the error
        return False
