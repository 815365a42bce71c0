"""Decide which parquet files below a folder are one data set: splits, partitions, parts, but no configurations."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote

from mimcl.pipeline.files import DataError
from mimcl.pipeline.sources.names import from_fs, to_utf8
from mimcl.pipeline.sources.parquet_columns import LABELS
from mimcl.pipeline.sources.splits import find_files, group_by_split, without_split_words

_PART = re.compile(r"(?:part|chunk|shard|batch)?[-_]?(\d+)", re.IGNORECASE)
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"  # of Hive and Spark, for null


def parquet_files(root: Path) -> tuple[dict[str, list[tuple[str, Path]]], list[str]]:
    """Return name and path of the files of each split below a folder, or of the file at `root`, and notes.

    Folders that differ in the split (train/, val/), in a number (part-0, part-1) or in the value of a partition
    (lang=en, lang=fr) are one data set. Raises DataError if others differ, such as the configurations en/ and fr/ of a
    data set on Hugging Face's hub.
    """
    files = find_files(root, ".parquet") if root.is_dir() else [root]
    base = root if root.is_dir() else root.parent
    if not files:
        raise DataError(f"{root} has no .parquet files; give a folder with some")
    named = [(to_utf8(from_fs(file.relative_to(base).as_posix())), file) for file in files]
    splits, notes = group_by_split(root, ((name, (name, file)) for name, file in named))
    return splits, notes + _joined(root, [name for of_split in splits.values() for name, _ in of_split])


def partition_label(name: str, label_column: str | None) -> tuple[bool, int | str | None]:
    """Return whether a file's folders, such as label=cat/, have a label, and that label."""
    for part in name.split("/")[:-1]:
        key, equals, value = part.partition("=")
        if equals and (key == label_column if label_column else key in LABELS):
            value = unquote(value)
            return True, None if value == _NO_VALUE else int(value) if re.fullmatch(r"-?\d{1,18}", value) else value
    return False, None


def _joined(root: Path, names: Iterable[str]) -> list[str]:
    """Return notes about what is joined. Raises DataError if it may be several data sets."""
    folders = sorted({name.rpartition("/")[0] for name in names})
    kinds: dict[str, str] = {}
    for folder in folders:
        kinds.setdefault(_without_partitions(folder), folder)
    if len(kinds) > 1 and not _are_parts(kinds):
        shown = " and ".join(f"{folder}/" if folder else f"{root.name} itself" for folder in list(kinds.values())[:2])
        raise DataError(f"{root} has parquet files in {shown}, perhaps different data sets; give the folder of one")
    notes = []
    if len(kinds) > 1 or any("=" in folder for folder in folders):
        notes.append(f"joined as one data set: {_shown([folder + '/' for folder in folders])}")
    stems: dict[str, str] = {}
    for name in names:
        stems.setdefault(_words(name.rpartition("/")[2]), name)
    if len(stems) > 1:
        notes.append(f"joined as one data set: {_shown(list(stems.values()))}")
    return notes


def _without_partitions(folder: str) -> str:
    return "/".join(without_split_words(part) for part in folder.split("/") if "=" not in part)


def _are_parts(folders: Iterable[str]) -> bool:
    """Whether the folders are the same but for a number in each, and the numbers are 0, 1, ... or 1, 2, ..."""
    numbers, others = set(), set()
    for folder in folders:
        parts = folder.split("/")
        found = [place for place, part in enumerate(parts) if _PART.fullmatch(part)]
        if len(found) != 1:
            return False
        (match,) = filter(None, [_PART.fullmatch(parts[found[0]])])
        numbers.add(int(match[1]))
        parts[found[0]] = match[0][: match.start(1)]
        others.add("/".join(parts))
    return len(others) == 1 and min(numbers) <= 1 and len(numbers) == max(numbers) - min(numbers) + 1


def _words(name: str) -> str:
    """Return what distinguishes a file's name beside its split, and numbers or digests such as 00000-of-00005."""
    words = re.split(r"[-_. ]+", without_split_words(name.removesuffix(".parquet")))
    return " ".join(word for word in words if word not in ("", "of") and not re.search(r"\d", word))


def _shown(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4:,} others" if len(names) > 4 else "")
