"""Read the lines of text files that the user gives: class lists and label files."""

from __future__ import annotations

import codecs
import re
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
    """Return the lines of a text in UTF-8, with or without a byte order mark. Raises DataError."""
    if text.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in text:
        raise DataError(f"{where} is not UTF-8 text but UTF-16 or binary; convert it to UTF-8")
    try:
        return re.split("\r\n|\n|\r", text.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not UTF-8 text (byte {error.start:,}); convert it to UTF-8") from None
