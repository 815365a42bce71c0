"""Files and folders: opened with errors that name their remedy; written to a temporary name, flushed, renamed."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

# Errors of the process or the machine rather than of a file, and what to do about them. ENFILE comes first: its words
# begin with those of EMFILE.
EXHAUSTED = {
    errno.ENFILE: "end other programs, which have used up the machine's file descriptors",
    errno.EMFILE: "raise the limit of open files, for example with `ulimit -n 4096`",
    errno.ENOMEM: "free some memory",
}
_CHECKS = {
    errno.EACCES: "check the permissions",
    errno.EPERM: "check the permissions",
    errno.EIO: "check the disk",
}


class DataError(Exception):
    """An error in images, shards or indices that the user has to fix; one line that says what and how."""


class NotPackedError(DataError):
    """There is no packed data set in `root`, a folder or a URL without credentials."""

    def __init__(self, root: str) -> None:
        super().__init__(f"{root} is not a packed data set (no dataset.json)")
        self.root = root


class NoPrototypesError(DataError):
    """Remote shards have no such prototype set."""


def open_descriptor(path: str | Path, flags: int) -> int:
    """Open a file as os.open does. Raises OSError, and DataError if descriptors or memory are exhausted.

    These are not errors of the file: code that takes an OSError for a missing or damaged file must not see them.
    """
    try:
        return os.open(path, flags | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno in EXHAUSTED:
            raise DataError(f"{path} cannot be opened ({error.strerror}); {EXHAUSTED[error.errno]}") from error
        raise


def remedy(error: OSError, usual: str) -> str:
    """What to do about a file that cannot be opened, read or written: `usual`, unless the reason is another one."""
    number = error.errno or 0
    return EXHAUSTED.get(number) or (f"{_CHECKS[number]}, or {usual}" if number in _CHECKS else usual)


def open_regular(path: Path) -> BufferedReader:
    """Open a file for reading. Raises OSError also for a pipe, a device or a folder, which could block or never end.

    Raises DataError where `open_descriptor` does.
    """
    # Without O_NONBLOCK, opening a pipe waits for a writer; for regular files the flag has no effect.
    file = open(path, "rb", opener=lambda name, flags: open_descriptor(name, flags | os.O_NONBLOCK))  # noqa: SIM115 - returned
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(f"{path.name} is not a regular file")
    return file


def is_forbidden(error: OSError) -> bool:
    """Whether a file cannot be written whatever the room: permissions, or a read-only file system."""
    return error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)


def list_folder(path: Path) -> list[Path]:
    """Return what is in a folder, sorted; nothing if there is none. Raises DataError if it cannot be listed.

    Path.glob would silently find nothing in a folder that may not be read, or whose disk or server fails.
    """
    try:
        return sorted(path.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise DataError(f"{path} cannot be listed: {error.strerror or error}") from None


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Write a binary file that appears at `path` only if the block ends without an error.

    If several processes write the same file, the last one to finish wins.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_folder(path: Path, replace: bool = False) -> Iterator[Path]:
    """Create a folder to fill; it appears at `path` only if the block ends without an error.

    Raises OSError if `path` exists and is not an empty folder, unless `replace`.
    """
    temporary, old = (path.with_name(f".{path.name}.{os.getpid()}.{end}") for end in ("tmp", "old"))
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for written in (*temporary.rglob("*"), temporary):
            _flush(written)
        if replace and path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
    except BaseException:
        if old.exists() and not path.exists():
            os.replace(old, path)
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _flush(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON with a final newline, atomically."""
    with atomic_file(path) as file:
        file.write((json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def write_json_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write one JSON object per line, atomically."""
    with atomic_file(path) as file:
        file.writelines((json.dumps(row, ensure_ascii=False) + "\n").encode() for row in rows)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
