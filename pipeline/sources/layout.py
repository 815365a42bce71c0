"""Derive splits and classes from relative paths: ImageNet's layout, class folders, or flat."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import xxhash

from mimcl.pipeline.files import DataError
from mimcl.pipeline.sources.item import Item, Source
from mimcl.pipeline.sources.labels import NO_CLASS_FOLDERS
from mimcl.pipeline.sources.names import to_utf8

T = TypeVar("T", bound=Item)


def source_from_paths(
    where: object, paths: Iterable[str], folders: Iterable[str], item: Callable[[str, str, int], Item]
) -> Source:
    """Return a source of the files at `paths`: distinct, relative to `where`, as `from_fs` gives them, in any order.

    With a folder train/ (and perhaps val/) at the top, these are the splits and everything beside them is skipped; with
    val/ alone, all is val; otherwise all is train. Folders in a split are its classes, including empty ones in
    `folders`, and files beside them are skipped; a split without folders has no labels. `item(path, name, label)` makes
    an item, `name` being relative to its split. Items are sorted by the parts of their paths. Raises DataError if
    nothing is left.
    """
    split_paths = [path.split("/") for path in paths]
    known = {tuple(path.split("/")) for path in folders}
    top = {path[0] for path in split_paths if len(path) > 1} | {path[0] for path in known}
    notes = []
    if "train" in top:
        names = [split for split in ("train", "val") if split in top]
        if others := sorted(top.difference(names)):
            notes.append(f"skipped beside train/: {', '.join(map(to_utf8, others))}")
    elif top == {"val"} and all(len(path) > 1 for path in split_paths):  # for --val beside another source
        names = ["val"]
    elif "val" in top:
        raise DataError(f"{where} has val/ but no train/; rename val/ if it is a class, or give its own folder")
    else:
        names = []
    depth = 1 if names else 0  # of the class's name in a path
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
            notes.append(NO_CLASS_FOLDERS.format(split))
        found.sort()
        if not flat and (beside := sum(len(path) == depth + 1 for path in found)):
            notes.append(f"skipped beside the class folders of {split}: {beside:,} files")
        splits[split] = [
            item("/".join(path), to_utf8("/".join(path[depth:])), -1 if flat else label_of[path[depth]])
            for path in found
            if flat or len(path) > depth + 1
        ]
    if not any(splits.values()):
        raise DataError("; ".join([f"{where} has no files to pack", *notes, "give a folder of images"]))
    return Source(splits, [to_utf8(name) for name in classes], notes)


def hold_out(source: Source, share: float, where: object) -> Source:
    """Move a share of a source without val into a val split: the items with the lowest hashes of their names.

    So the choice depends on names only, and a larger share contains a smaller one. Raises DataError.
    """
    if not 0.0 <= share < 1.0:
        raise DataError(f"--holdout {share} must be at least 0 and less than 1")
    if not share:
        return source
    if "val" in source.splits:
        raise DataError(f"{where} already has val/; leave out --holdout, or rename val/")
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
