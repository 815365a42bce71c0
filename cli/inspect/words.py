"""Numbers as a reader likes them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def size(count: float) -> str:
    """Bytes, in powers of ten as disks are sold."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if count >= factor:
            return f"{count / factor:,.1f} {unit}"
    return f"{count:,.0f} bytes"


def some(names: Iterable[str], shown: int = 5) -> str:
    """The first names."""
    names = list(names)
    return ", ".join(names[:shown]) + (", ..." if len(names) > shown else "")


def bytes_below(folder: Path) -> int:
    """Sum of the sizes of the files in a folder and below; links are not followed."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
