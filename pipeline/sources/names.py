"""Names of files within sources: the same for the same bytes under every locale."""

from __future__ import annotations

import os


def from_fs(name: str) -> str:
    """Return the name of a file, as Python has it from the file system or the command line, decoded as UTF-8.

    Python decodes by the locale. Sources keep all names as UTF-8, other bytes as surrogate escapes.
    """
    return os.fsencode(name).decode("utf-8", "surrogateescape")


def to_fs(name: str) -> str:
    """Return the inverse of `from_fs`: what opens the file of that name under the current locale."""
    return os.fsdecode(name.encode("utf-8", "surrogateescape"))


def to_utf8(name: str) -> str:
    """Return a source's name as it is recorded: bytes that are not UTF-8 become backslash escapes."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
