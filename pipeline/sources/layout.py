"""What relative paths say of splits and classes: ImageNet's layout, class folders, or flat."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import TypeVar

import xxhash

from mimcl.pipeline.files import DataError
from mimcl.pipeline.sources.item import Item, Source

T = TypeVar("T", bound=Item)


def arrange(
    where: object, paths: Iterable[str], folders: Iterable[str], item: Callable[[str, str, int], Item]
) -> Source:
    """A source of files at `paths` relative to `where`, with forward slashes, any order, each once.

    With a folder train/ (and perhaps val/) at the top these are the splits, and what lies beside is passed over; with
    val/ alone all is val; without, all is train. Folders in a split are its classes, also the empty ones that `folders`
    names; files beside them are passed over; without any, a split has no labels. `item(path, name, label)` makes an
    item, `name` relative to its split. Items are in the order of the paths' parts. Raises DataError where there is
    nothing.
    """
    split_paths = [path.split("/") for path in paths]
    known = {tuple(path.split("/")) for path in folders}
    top = {path[0] for path in split_paths if len(path) > 1} | {path[0] for path in known}
    notes = []
    if "train" in top:
        names = [split for split in ("train", "val") if split in top]
        if others := sorted(top.difference(names)):
            notes.append(f"passed over beside train/: {', '.join(map(recordable, others))}")
    elif top == {"val"} and all(len(path) > 1 for path in split_paths):  # which goes beside another source
        names = ["val"]
    elif "val" in top:
        raise DataError(f"{where} has val/ but no train/; rename val/ if it is a class, or give its own folder")
    else:
        names = []
    depth = 1 if names else 0  # of a class's name in a path
    parts: dict[str, list[list[str]]] = {name: [] for name in names or ["train"]}
    for path in split_paths:
        if not depth:
            parts["train"].append(path)
        elif len(path) > 1 and path[0] in parts:
            parts[path[0]].append(path)
    of_split = {
        split: {path[depth] for path in found if len(path) > depth + 1}
        | {path[depth] for path in known if len(path) > depth and (not depth or path[0] == split)}
        for split, found in parts.items()
    }
    classes = sorted(set().union(*of_split.values()))
    label_of = {name: label for label, name in enumerate(classes)}
    splits: dict[str, list[Item]] = {}
    for split, found in parts.items():
        flat = not of_split[split]
        if flat and classes:
            notes.append(f"{split}/ has no class folders: its images get no label")
        found.sort()
        if not flat and (beside := sum(len(path) == depth + 1 for path in found)):
            notes.append(f"passed over beside the class folders of {split}: files, {beside} in number")
        splits[split] = [
            item("/".join(path), recordable("/".join(path[depth:])), -1 if flat else label_of[path[depth]])
            for path in found
            if flat or len(path) > depth + 1
        ]
    if not any(splits.values()):
        raise DataError("; ".join([f"{where} holds no files to pack", *notes, "give a folder of images"]))
    return Source(splits, [recordable(name) for name in classes], notes)


def recordable(name: str) -> str:
    """The name in UTF-8 whatever its bytes are."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def hold_out(source: Source, share: float, where: object) -> Source:
    """Moves that share of a source without val into a val split: the items whose names hash lowest.

    So the choice depends on the names alone, and a larger share holds what a smaller one does. Raises DataError.
    """
    if not 0.0 <= share < 1.0:
        raise DataError(f"--holdout {share} must be a share of the images, from 0 up to but not including 1")
    if not share:
        return source
    if "val" in source.splits:
        raise DataError(f"{where} already has val/; leave --holdout out, or rename val/")
    items = source.splits["train"]
    count = round(share * len(items))
    if not 0 < count < len(items):
        raise DataError(f"--holdout {share} of {len(items)} files leaves a split empty; choose another share")
    names = [item.name for item in items]
    by_hash = sorted(range(len(items)), key=lambda n: (xxhash.xxh64_intdigest(names[n].encode()), names[n]))
    held = set(by_hash[:count])
    source.splits = {
        "train": [item for n, item in enumerate(items) if n not in held],
        "val": [item for n, item in enumerate(items) if n in held],
    }
    return source
