"""JSON-lines files that grow during a run: a full disk delays lines, but neither stops the run nor loses any."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any


class JsonlWriter:
    """Appends rows. What a full disk refuses is kept and retried before the next rows."""

    def __init__(self, path: Path, warn: Callable[[str], None]) -> None:
        self._path, self._warn = path, warn
        self._unwritten, self._failing = b"", False

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append one line per row. Never raises OSError; `warn` is called once until writing works again."""
        self._unwritten += b"".join(json.dumps(row).encode() + b"\n" for row in rows)
        if not self._unwritten:
            return
        try:
            with open(self._path, "ab", buffering=0) as file:
                while self._unwritten:
                    self._unwritten = self._unwritten[file.write(self._unwritten) :]
            self._failing = False
        except OSError as error:
            if not self._failing:
                self._warn(
                    f"{self._path} cannot be written ({error.strerror}); its lines are kept in memory and retried"
                )
            self._failing = True

    def flush(self) -> None:
        """Retry what could not be written before."""
        self.write([])

    def sync(self) -> None:
        """Flush what was written to disk; may be called from another thread. Raises OSError."""
        if self._path.exists():
            with open(self._path, "rb") as file:
                os.fsync(file.fileno())


def add_line(path: Path, row: Mapping[str, Any]) -> None:
    """Append one line and flush it to disk. Raises OSError; a line that was cut off before is terminated first."""
    with open(path, "ab+", buffering=0) as file:
        line = json.dumps(row).encode() + b"\n"
        if file.tell():
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else b"\n" + line
        while line:
            line = line[file.write(line) :]
        os.fsync(file.fileno())


def keep_lines(path: Path, keep: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    """Rewrite a file with only the complete lines for which `keep` is true; return their values."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    kept = [(line, values) for line in lines if (values := _parse(line)) and keep(values)]
    aside = path.with_name(path.name + ".tmp")
    with open(aside, "wb") as file:
        file.writelines(line + b"\n" for line, _ in kept)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
    return [values for _, values in kept]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the complete lines of a file that may still be growing; none where there is no file."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    return [values for line in lines if (values := _parse(line))]


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        values = json.loads(line)
    except ValueError:  # the last line of a run that was killed
        return None
    return values if isinstance(values, dict) and isinstance(values.get("draw"), int) else None
