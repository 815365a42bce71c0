"""Paths for libraries that take only some: safetensors reads only from paths in UTF-8."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def ascii_path(path: Path) -> Iterator[str]:
    """Yield another path of an existing file, for use in the block. Raises OSError."""
    with open(path, "rb") as file:
        yield f"/dev/fd/{file.fileno()}"
