"""Read the lines of text files that the user gives: class lists and label files."""

from __future__ import annotations

from pathlib import Path

from mimcl.pipeline.files import DataError, open_regular

_MAX_BYTES = 1 << 30


def read_text(path: Path, kind: str) -> bytes:
    """Return the content of a text file. Raises DataError, which calls the file a `kind`."""
    try:
        with open_regular(path) as file:
            text = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise DataError(f"the {kind} {path} cannot be read: {error.strerror or error}") from None
    if len(text) > _MAX_BYTES:
        raise DataError(f"the {kind} {path} is larger than 1 GiB; give a text file")
    return text


def text_lines(text: bytes, where: object) -> list[str]:
    """Return the stripped lines of a text in UTF-8, with or without a byte order mark. Raises DataError."""
    try:
        return [line.strip() for line in text.decode("utf-8-sig").split("\n")]
    except UnicodeDecodeError:
        raise DataError(f"{where} is not UTF-8 text; convert it") from None
