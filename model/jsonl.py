"""Files that lines are added to while a run goes: a full disk delays them, it stops nothing and loses nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any


class AppendedFile:
    """Bytes at the end of a file. What a full disk does not take is kept, and tried again before the next."""

    def __init__(self, path: Path, warn: Callable[[str], None]) -> None:
        self._path, self._warn = path, warn
        self._unwritten, self._in_trouble = b"", False

    def write(self, data: bytes) -> None:
        """Never raises OSError; `warn` is told once until there is room again."""
        self._unwritten += data
        if not self._unwritten:
            return
        try:
            with open(self._path, "ab", buffering=0) as file:
                while self._unwritten:
                    self._unwritten = self._unwritten[file.write(self._unwritten) :]
            self._in_trouble = False
        except OSError as error:
            if not self._in_trouble:
                self._warn(f"{self._path} cannot be written ({error.strerror}); its lines are kept and tried again")
            self._in_trouble = True

    def flush(self) -> None:
        """Tries again to write what is left from before."""
        self.write(b"")

    def sync(self) -> None:
        """Brings what was written onto the disk; may be called from another thread. Raises OSError."""
        if self._path.exists():
            with open(self._path, "rb") as file:
                os.fsync(file.fileno())


class LineFile(AppendedFile):
    """The same for lines of JSON."""

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes a line for each row."""
        self.write(b"".join(json.dumps(row).encode() + b"\n" for row in rows))


def add_line(path: Path, row: Mapping[str, Any]) -> None:
    """Adds a line of JSON at once, onto the disk. Raises OSError; what is half a line by then, the next one ends."""
    with open(path, "ab+", buffering=0) as file:
        line = json.dumps(row).encode() + b"\n"
        if file.tell():
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else b"\n" + line
        while line:
            line = line[file.write(line) :]
        os.fsync(file.fileno())


def keep_lines(path: Path, belongs: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    """Drops the lines of a JSON-lines file that do not belong, and what is no whole line; returns those kept."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    kept = [(line, values) for line in lines if (values := _parsed(line)) and belongs(values)]
    aside = path.with_name(path.name + ".tmp")
    with open(aside, "wb") as file:
        file.writelines(line + b"\n" for line, _ in kept)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
    return [values for _, values in kept]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of such a file, which may be growing; none where there is no file."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    return [values for line in lines if (values := _parsed(line))]


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        values = json.loads(line)
    except ValueError:  # the last line of a run that was killed
        return None
    return values if isinstance(values, dict) and isinstance(values.get("draw"), int) else None
