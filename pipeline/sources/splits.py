"""Assign files to splits by the words in their names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from mimcl.pipeline.files import DataError
from mimcl.pipeline.sources.names import from_fs

T = TypeVar("T")
_WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}


def split_of(name: str) -> str:
    """Return train, val or test by the last such word in a relative path; train if there is none."""
    words = [word for word in re.split(r"[^a-z]+", name.lower()) if word in _WORDS]
    return _WORDS[words[-1]] if words else "train"


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
    """Return the files below `root` whose names end with `ending`, sorted by their paths' parts; no hidden ones."""
    found = []
    for folder, folders, names in os.walk(root, followlinks=False):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(folder, name) for name in names if name.endswith(ending) and not name.startswith(".")]
    return sorted(found, key=lambda path: from_fs(str(path.relative_to(root))).split("/"))
