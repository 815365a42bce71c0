"""Files that are either whole or not there: written aside, flushed to disk, renamed."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO


class DataError(Exception):
    """Something about images, shards or indices that the user has to mend; one line that says what and how."""


def open_regular(path: Path) -> BufferedReader:
    """Opens for reading. Raises OSError, also for what would block or never end: a pipe, a device, a folder."""
    # Opening a pipe waits for a writer unless it is told not to; for regular files the flag means nothing.
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115 - returned
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(f"{path.name} is not a regular file")
    return file


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file that appears under `path` only when the block ends without an error.

    Of several processes that write the same one, the last to end wins.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(aside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_folder(path: Path, replace: bool = False) -> Iterator[Path]:
    """Create a folder to fill; it appears as `path` only when the block ends without an error.

    Raises OSError if `path` exists and is not an empty folder, unless `replace`.
    """
    aside, old = (path.with_name(f".{path.name}.{os.getpid()}.{end}") for end in ("tmp", "old"))
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        yield aside
        for written in (*aside.rglob("*"), aside):
            _flush(written)
        if replace and path.exists():
            os.replace(path, old)
        os.replace(aside, path)
    except BaseException:
        if old.exists() and not path.exists():
            os.replace(old, path)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    _flush(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def write_json(path: Path, content: Any) -> None:
    """Writes `content` as indented JSON with a final newline, atomically."""
    with atomic_file(path) as file:
        file.write((json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes one JSON object a line, atomically."""
    with atomic_file(path) as file:
        file.writelines((json.dumps(row, ensure_ascii=False) + "\n").encode() for row in rows)
