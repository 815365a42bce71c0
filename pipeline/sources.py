"""What can be packed. A source names its splits and yields an Item per file; bytes are read only when asked for."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import xxhash

from mimcl.pipeline.files import DataError

_MAX_BYTES = 2**31 - 1  # readers count in 32 bits; no image within the limit on pixels needs more


@dataclass(frozen=True)
class Item:
    """One candidate: where it lies, its name relative to the source (recorded in the index), its label (-1 = none)."""

    file: Path
    name: str
    label: int

    def read(self) -> bytes:
        """The file's content. Raises OSError, also for what would never end or fit: a pipe, a device, over 2 GiB."""
        status = self.file.stat()
        if not stat.S_ISREG(status.st_mode):
            raise OSError("not a regular file")
        if status.st_size > _MAX_BYTES:
            raise OSError("larger than 2 GiB")
        return self.file.read_bytes()


@dataclass
class Source:
    """Splits in the order they are packed; classes sorted by name, a label is a position in them."""

    splits: dict[str, list[Item]]
    classes: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what was passed over, for the user to read


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
    splits = {}
    for split, split_root in roots.items():
        flat = not per_split[split]
        if flat and classes:
            notes.append(f"{split}/ has no class folders: its images get no label")
        paths = sorted(path.split("/") for path in _walk(split_root))
        if not flat and (beside := sum(len(path) == 1 for path in paths)):
            notes.append(f"passed over beside the class folders of {split}: files, {beside} in number")
        splits[split] = [
            Item(split_root.joinpath(*path), _recordable("/".join(path)), -1 if flat else label_of[path[0]])
            for path in paths
            if flat or len(path) > 1
        ]
    if not any(splits.values()):
        raise DataError("; ".join([f"{root} holds no files to pack", *notes, "give a folder of images"]))
    if holdout:
        splits = _hold_out(splits["train"], holdout)
    return Source(splits, [_recordable(name) for name in classes], notes)


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


def _recordable(name: str) -> str:
    """The name in UTF-8 whatever its bytes are."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _hold_out(items: list[Item], share: float) -> dict[str, list[Item]]:
    count = round(share * len(items))
    if not 0 < count < len(items):
        raise DataError(f"--holdout {share} of {len(items)} files leaves a split empty; choose another share")
    by_hash = sorted(items, key=lambda item: (xxhash.xxh64_intdigest(item.name.encode()), item.name))
    held = {item.file for item in by_hash[:count]}
    return {
        "train": [item for item in items if item.file not in held],
        "val": [item for item in items if item.file in held],
    }
