"""What can be packed. A source names its splits and yields an Item per file; bytes are read only when asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import xxhash

from mimcl.pipeline.files import DataError


@dataclass(frozen=True)
class Item:
    """One candidate: where it lies, its name relative to the source (recorded in the index), its label (-1 = none)."""

    file: Path
    name: str
    label: int

    def read(self) -> bytes:
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
    the choice depends on the names alone. Links are followed. Raises DataError for a missing or empty folder.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; give a folder of images, of class folders, or with train/ in it")
    if not 0.0 <= holdout < 1.0:
        raise DataError(f"--holdout {holdout} must be a share of the images, from 0 up to but not including 1")
    folders = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    notes = []
    if "train" in folders:
        roots = {split: root / split for split in ("train", "val") if split in folders}
        if others := [name for name in folders if name not in roots]:
            notes.append(f"passed over beside train/: {', '.join(others)}")
    else:
        roots = {"train": root}
    if holdout and "val" in roots:
        raise DataError(f"{root} already has val/; leave --holdout out, or rename val/")

    per_split = {split: sorted(e.name for e in os.scandir(r) if e.is_dir()) for split, r in roots.items()}
    classes = sorted(set().union(*per_split.values()))
    label_of = {name: label for label, name in enumerate(classes)}
    splits = {}
    for split, split_root in roots.items():
        flat = not per_split[split]
        if flat and classes:
            notes.append(f"{split}/ has no class folders: its images get no label")
        splits[split] = [
            Item(split_root / relative, _recordable(relative), -1 if flat else label_of.get(parts[0], -1))
            for relative, parts in sorted(
                ((path, path.split("/")) for path in _walk(split_root, not flat)), key=lambda pair: pair[1]
            )
        ]
    if not any(splits.values()):
        raise DataError(f"{root} holds no files; give a folder of images")
    if holdout:
        splits = _hold_out(splits["train"], holdout)
    return Source(splits, classes, notes)


def _walk(root: Path, class_folders: bool) -> Iterator[str]:
    """Files below `root` as relative paths with forward slashes; with class folders, only those inside one."""
    for folder, below, files in os.walk(root, followlinks=True):
        if os.path.islink(folder) and Path(folder).resolve() in Path(folder).parent.resolve().parents:
            below.clear()  # a link back to a folder above itself
            continue
        prefix = os.path.relpath(folder, root).replace(os.sep, "/")
        if prefix == ".":
            if not class_folders:
                yield from files
        else:
            yield from (f"{prefix}/{file}" for file in files)


def _recordable(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _hold_out(items: list[Item], share: float) -> dict[str, list[Item]]:
    count = round(share * len(items))
    by_hash = sorted(items, key=lambda item: (xxhash.xxh64_intdigest(item.name), item.name))
    held = {item.file for item in by_hash[:count]}
    return {
        "train": [item for item in items if item.file not in held],
        "val": [item for item in items if item.file in held],
    }
