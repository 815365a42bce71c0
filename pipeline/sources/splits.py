"""Assign folders and files to splits by the words in their names; one table of words for every kind of source."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from mimcl.pipeline.files import DataError
from mimcl.pipeline.sources.junk import is_junk
from mimcl.pipeline.sources.names import from_fs, to_utf8

T = TypeVar("T")
SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "trainset": "train",
    "trainval": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "valset": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
    "testset": "test",
}
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")  # of TRAIN_images, trainImages or train2017


def split_of(name: str) -> str:
    """Return train, val or test by the last such word in a relative path; train if there is none."""
    words = [word for found in _WORD.findall(name) if (word := found.lower()) in SPLIT_WORDS]
    return SPLIT_WORDS[words[-1]] if words else "train"


def without_split_words(name: str) -> str:
    """Return a name without the words of splits, so that train-0 and val-0 are the same."""
    return _WORD.sub(lambda found: "" if found[0].lower() in SPLIT_WORDS else found[0], name)


def split_folders(where: object, folders: Iterable[str]) -> dict[str, str]:
    """Return the folder of each split among sibling folders; empty if none is a split.

    A folder is a split if its name is such a word in any case (Train, validation). Names that differ only in the word
    (seg_train and seg_test, train2017 and val2017) are splits if one of them is train. Raises DataError if two folders
    are the same split.
    """
    groups: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for folder in sorted(folders):
        for found in _WORD.finditer(folder):
            if split := SPLIT_WORDS.get(found[0].lower()):
                groups[f"{folder[: found.start()]}/{folder[found.end() :]}"][split].append(folder)
    whole = groups.pop("/", {})
    chosen = [whole] if whole else [group for group in groups.values() if "train" in group and len(group) > 1]
    if len(chosen) > 1:
        names = sorted(name for group in chosen for name in group["train"])
        raise DataError(f"{where} has several train splits ({', '.join(names)}); give the folder of one, or --list")
    splits = {}
    for split, names in chosen[0].items() if chosen else ():
        if len(names) > 1:
            raise DataError(f"{where}: {'/ and '.join(names)}/ are both the {split} split; move or rename one of them")
        splits[split] = names[0]
    return splits


def group_by_split(where: object, named: Iterable[tuple[str, T]]) -> tuple[dict[str, list[T]], list[str]]:
    """Return the files of train and val in the given order, and notes; skip test. DataError if nothing is left."""
    found: dict[str, list[T]] = {"train": [], "val": [], "test": []}
    for name, file in named:
        found[split_of(name)].append(file)
    skipped = len(found.pop("test"))
    if not any(found.values()):
        raise DataError(f"{where} has no files of train or val" + (", only of test" if skipped else ""))
    notes = [f"skipped as test: {skipped:,} files"] if skipped else []
    return {split: files for split, files in found.items() if files}, notes


def find_files(root: Path, ending: str) -> list[Path]:
    """Return the files below `root` whose names end with `ending`, sorted by their paths' parts, without junk.

    Raises DataError if a folder cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise DataError(f"{to_utf8(from_fs(str(error.filename)))} cannot be listed: {error.strerror}") from None

    found = []
    for folder, folders, names in os.walk(root, onerror=refuse, followlinks=False):
        folders[:] = [name for name in folders if not is_junk(name)]
        found += [Path(folder, name) for name in names if name.endswith(ending) and not is_junk(name)]
    return sorted(found, key=lambda path: from_fs(str(path.relative_to(root))).split("/"))
