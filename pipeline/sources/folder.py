"""A folder of images as a source: ImageNet's layout, class folders, or flat."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from mimcl.pipeline.files import DataError
from mimcl.pipeline.sources.item import FileItem, Source
from mimcl.pipeline.sources.layout import hold_out, source_from_paths
from mimcl.pipeline.sources.names import from_fs, to_fs, to_utf8


def image_folder(root: Path, holdout: float = 0.0) -> Source:
    """Return the images of a folder with train/ (and val/), with class folders, or flat without labels.

    `holdout` moves that share of a source without val/ into a val split. Symbolic links are followed, except into a
    parent folder. Raises DataError if the folder is missing, empty or cannot be listed.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; give a folder of images, of class folders, or with train/ in it")
    folders = _folders(root)
    if "train" in folders:
        walked = [name for name in ("train", "val") if name in folders]
        paths = [f"{split}/{path}" for split in walked for path in _walk(root / split)]
        folders += [f"{split}/{name}" for split in walked for name in _folders(root / split)]
    elif "val" in folders:
        paths = []  # source_from_paths refuses it
    else:
        paths = list(_walk(root))
    make = FileItemFactory(root)
    source = source_from_paths(root, paths, folders, make)
    source.modified = make.modified
    return hold_out(source, holdout, root)


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


def _folders(folder: Path) -> list[str]:
    return sorted(from_fs(entry.name) for entry in _entries(folder) if _is_folder(entry))


def _walk(folder: Path, prefix: str = "", parents: tuple[tuple[int, int], ...] = ()) -> Iterator[str]:
    """Yield the files below `folder` as relative paths with forward slashes; cycles of links are skipped."""
    entries, status = _entries(folder), folder.stat()
    identity = (status.st_dev, status.st_ino)
    if identity in parents:
        return
    for entry in entries:
        if _is_folder(entry):
            yield from _walk(folder / entry.name, f"{prefix}{from_fs(entry.name)}/", (*parents, identity))
        else:
            yield prefix + from_fs(entry.name)


def _entries(folder: Path) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise DataError(f"{to_utf8(from_fs(str(folder)))} cannot be listed: {error.strerror}") from None


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a broken link; reading it reports the error
        return False
