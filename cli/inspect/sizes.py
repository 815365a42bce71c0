"""Numbers as a reader likes them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from contextlib import suppress
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
    """Sum of the sizes of the files in a folder and below; links are not followed. What vanishes meanwhile is 0."""
    found = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                status = os.lstat(os.path.join(parent, name))
                found += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return found
