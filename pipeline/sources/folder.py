"""A folder of images as a source: ImageNet's layout, class folders, or flat."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from mimcl.pipeline.files import DataError
from mimcl.pipeline.sources.item import FileItem, Source
from mimcl.pipeline.sources.layout import arrange, hold_out, recordable


def image_folder(root: Path, holdout: float = 0.0) -> Source:
    """ImageNet's folder layout (train/ and perhaps val/), a folder of class folders, or a flat folder without labels.

    `holdout` moves that share of a source without val/ into a val split. Links are followed, but not back into a folder
    they lie in. Raises DataError for a folder that is missing, empty or cannot be listed.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; give a folder of images, of class folders, or with train/ in it")
    folders = _folders(root)
    if "train" in folders:
        walked = [name for name in ("train", "val") if name in folders]
        paths = [f"{split}/{path}" for split in walked for path in _walk(root / split)]
        folders += [f"{split}/{name}" for split in walked for name in _folders(root / split)]
    elif "val" in folders:
        paths = []  # and arranging refuses it
    else:
        paths = list(_walk(root))
    items = FileItems(root)
    source = arrange(root, paths, folders, items)
    source.modified = items.modified
    return hold_out(source, holdout, root)


class FileItems:
    """Makes items of files below a folder, and keeps when the newest of them was changed."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.modified = 0  # ns since 1970

    def __call__(self, path: str, name: str, label: int) -> FileItem:
        file = self._root / path
        try:
            status = file.stat()
        except (OSError, ValueError):  # a link or a line that leads nowhere; reading it says so
            return FileItem(name, label, 0, file)
        self.modified = max(self.modified, status.st_mtime_ns)
        return FileItem(name, label, status.st_size, file)


def _folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in _entries(folder) if _is_folder(entry))


def _walk(folder: Path, prefix: str = "", above: tuple[tuple[int, int], ...] = ()) -> Iterator[str]:
    """Files below `folder` as relative paths with forward slashes; a folder inside itself, by links, is left out."""
    entries, status = _entries(folder), folder.stat()
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        return
    for entry in entries:
        if _is_folder(entry):
            yield from _walk(folder / entry.name, f"{prefix}{entry.name}/", (*above, identity))
        else:
            yield prefix + entry.name


def _entries(folder: Path) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise DataError(f"{recordable(str(folder))} cannot be listed: {error.strerror}") from None


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads nowhere; reading it says so
        return False
