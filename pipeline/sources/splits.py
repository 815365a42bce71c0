"""Which split a file belongs to, by the words in its name."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from mimcl.pipeline.files import DataError

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
    """train, val or test, by the last such word in a relative path; train where there is none."""
    words = [word for word in re.split(r"[^a-z]+", name.lower()) if word in _WORDS]
    return _WORDS[words[-1]] if words else "train"


def by_split(where: object, named: Iterable[tuple[str, T]]) -> tuple[dict[str, list[T]], list[str]]:
    """Files by their splits, in the given order, and notes; test is passed over. DataError where nothing is left."""
    found: dict[str, list[T]] = {"train": [], "val": [], "test": []}
    for name, file in named:
        found[split_of(name)].append(file)
    passed_over = len(found.pop("test"))
    if not any(found.values()):
        raise DataError(f"{where} has nothing of train or val" + (", only of test" if passed_over else ""))
    notes = [f"passed over as test: {passed_over:,} files"] if passed_over else []
    return {split: files for split, files in found.items() if files}, notes


def files_below(root: Path, ending: str) -> list[Path]:
    """The files in a folder and the folders in it whose names end so, by their paths' parts; none that are hidden."""
    found = []
    for folder, folders, names in os.walk(root, followlinks=False):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(folder, name) for name in names if name.endswith(ending) and not name.startswith(".")]
    return sorted(found, key=lambda path: path.relative_to(root).parts)
