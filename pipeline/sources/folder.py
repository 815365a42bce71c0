"""A folder of images as a source: ImageNet's layout, class folders, or flat."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import xxhash

from mimcl.pipeline.files import DataError
from mimcl.pipeline.sources.item import FileItem, Source


def image_folder(root: Path, holdout: float = 0.0) -> Source:
    """ImageNet's folder layout (train/ and perhaps val/), a folder of class folders, or a flat folder without labels.

    `holdout` moves that share of a source without val/ into a val split: the items whose names hash lowest, so that
    the choice depends on the names alone. Links are followed, but not back into a folder they lie in. Raises DataError
    for a folder that is missing, empty or cannot be listed.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; give a folder of images, of class folders, or with train/ in it")
    if not 0.0 <= holdout < 1.0:
        raise DataError(f"--holdout {holdout} must be a share of the images, from 0 up to but not including 1")
    folders = _folders(root)
    notes = []
    if "train" in folders:
        roots = {split: root / split for split in ("train", "val") if split in folders}
        if others := [name for name in folders if name not in roots]:
            notes.append(f"passed over beside train/: {', '.join(map(_recordable, others))}")
    elif "val" in folders:
        raise DataError(f"{root} has val/ but no train/; rename val/ if it is a class, or give its own folder")
    else:
        roots = {"train": root}
    if holdout and "val" in roots:
        raise DataError(f"{root} already has val/; leave --holdout out, or rename val/")

    per_split = {split: _folders(split_root) for split, split_root in roots.items()}
    classes = sorted(set().union(*per_split.values()))
    label_of = {name: label for label, name in enumerate(classes)}
    splits: dict[str, list[FileItem]] = {}
    modified = 0
    for split, split_root in roots.items():
        flat = not per_split[split]
        if flat and classes:
            notes.append(f"{split}/ has no class folders: its images get no label")
        paths = sorted(path.split("/") for path in _walk(split_root))
        if not flat and (beside := sum(len(path) == 1 for path in paths)):
            notes.append(f"passed over beside the class folders of {split}: files, {beside} in number")
        splits[split] = []
        for path in paths:
            if flat or len(path) > 1:
                file = split_root.joinpath(*path)
                nbytes, changed = _size_and_change(file)
                modified = max(modified, changed)
                label = -1 if flat else label_of[path[0]]
                splits[split].append(FileItem(_recordable("/".join(path)), label, nbytes, file))
    if not any(splits.values()):
        raise DataError("; ".join([f"{root} holds no files to pack", *notes, "give a folder of images"]))
    if holdout:
        splits = _hold_out(splits["train"], holdout)
    return Source(splits, [_recordable(name) for name in classes], notes, modified)


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
        raise DataError(f"{_recordable(str(folder))} cannot be listed: {error.strerror}") from None


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads nowhere; reading it says so
        return False


def _size_and_change(file: Path) -> tuple[int, int]:
    """Bytes and ns since 1970; zeros for a link that leads nowhere, of which reading tells."""
    try:
        status = file.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


def _recordable(name: str) -> str:
    """The name in UTF-8 whatever its bytes are."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _hold_out(items: list[FileItem], share: float) -> dict[str, list[FileItem]]:
    count = round(share * len(items))
    if not 0 < count < len(items):
        raise DataError(f"--holdout {share} of {len(items)} files leaves a split empty; choose another share")
    by_hash = sorted(items, key=lambda item: (xxhash.xxh64_intdigest(item.name.encode()), item.name))
    held = {item.file for item in by_hash[:count]}
    return {
        "train": [item for item in items if item.file not in held],
        "val": [item for item in items if item.file in held],
    }
