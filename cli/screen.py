"""Text for the screen: any character can be written whatever the encoding, and names cannot control the terminal."""

from __future__ import annotations

import codecs
import io
import os
import sys

# For encodings without them; other characters become backslash escapes.
_PLAIN = {"·": "-", "–": "-", "−": "-", "±": "+-", "≥": ">=", "≤": "<=", "…": "...", "✓": "+", "✗": "x"}


def accept_any_text() -> None:
    """Let stdout and stderr take any text: characters that their encoding lacks are replaced or escaped."""
    codecs.register_error("mimcl", _replace)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="mimcl")


def wants_colour() -> bool | None:
    """Return whether to use colours as NO_COLOR, FORCE_COLOR and TERM say, as rich reads them; None: on terminals."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM", "").lower() in ("dumb", "unknown"):
        return False
    return True if os.environ.get("FORCE_COLOR") else None


def printable(text: str) -> str:
    """Escape what may control a terminal or cannot be seen, as `repr` does: newlines, ESC, reversed text and so on.

    Bytes of file names that are not in the locale's encoding become hexadecimal escapes.
    """
    return text if text.isprintable() else "".join(map(_escape, text))


def _escape(character: str) -> str:
    if character.isprintable():
        return character
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def _replace(error: UnicodeError) -> tuple[str | bytes, int]:
    if isinstance(error, UnicodeEncodeError) and (plain := _PLAIN.get(error.object[error.start])):
        return plain, error.start + 1
    return codecs.backslashreplace_errors(error)
