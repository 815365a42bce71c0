"""Decode the names in a zip's directory, which seldom says how they are encoded."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Sequence

from mimcl.pipeline.sources.names import to_utf8

_IS_UTF8 = 0x800  # a flag; without it, zipfile decodes names as cp437, which has a character for every byte
_UNICODE_PATH = 0x7075  # an extra field: version 1, CRC of the name, name in UTF-8
_UNIX = (3, 19)  # systems whose file names are bytes, today UTF-8: Unix (and Info-ZIP on macOS), Darwin


def decoded_names(archive: str, infos: Sequence[zipfile.ZipInfo]) -> tuple[list[str], list[str]]:
    """Return the members' names, and notes on what is not certain; `archive` is the zip's name.

    Names are UTF-8 with surrogate escapes, as unzip writes them, where the zip says so or was made on Unix, else cp437.
    Backslashes are separators in a zip without slashes and in names from Windows.
    """
    names, guessed = [], []
    for info in infos:
        name = _said(info)
        if name is None:
            name = info.orig_filename
            if not name.isascii():
                guessed.append(name)
        names.append(name.partition("\0")[0])
    notes = []
    if guessed:
        notes.append(
            f"{archive}: {len(guessed):,} names are read as cp437, such as {guessed[0]:.200}; if that looks wrong, "
            "unpack it and pack the folder"
        )
    any_slash = any("/" in name for name in names)
    split, kept = [], []
    for number, name in enumerate(names):
        if "\\" in name:
            if any_slash and infos[number].create_system in _UNIX:
                kept.append(name)
            else:
                split.append(name)
                names[number] = name.replace("\\", "/")
    for found, what in ((split, "backslashes are separators"), (kept, "backslashes are parts of names")):
        if found:
            notes.append(f"{archive}: {what} in {len(found):,} members, such as {to_utf8(found[0]):.200}")
    return names, notes


def _said(info: zipfile.ZipInfo) -> str | None:
    """Return the name of which the encoding is known; None otherwise."""
    is_utf8 = bool(info.flag_bits & _IS_UTF8)
    raw = info.orig_filename.encode("utf-8" if is_utf8 else "cp437")
    if (unicode := _unicode_path(info.extra, raw)) is not None:
        return unicode
    return raw.decode("utf-8", "surrogateescape") if is_utf8 or info.create_system in _UNIX else None


def _unicode_path(extra: bytes, raw: bytes) -> str | None:
    """Return the name in the extra field, if there is one and it was made for the name `raw`."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        field = extra[at + 4 : at + 4 + length]
        if (
            kind == _UNICODE_PATH
            and len(field) > 5
            and field[0] == 1
            and field[1:5] == struct.pack("<I", zlib.crc32(raw))
        ):
            try:
                return field[5:].decode()
            except UnicodeDecodeError:
                return None
        at += 4 + length
    return None
