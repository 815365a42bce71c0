"""Recognize what operating systems and tools leave among images: hidden files, caches, trash, thumbnails."""

from __future__ import annotations

from collections.abc import Iterable

_NAMES = {
    "__macosx",  # macOS, in archives
    "@eadir",  # Synology
    "#recycle",
    "#snapshot",
    "@recycle",  # QNAP
    "@recently-snapshot",
    "$recycle.bin",  # Windows
    "system volume information",
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "lost+found",
    "__pycache__",
}


def is_junk(name: str) -> bool:
    """Whether a file or folder of this name is never part of a data set: hidden, or one of a table of names."""
    return name.startswith(".") or name.lower() in _NAMES


def junk_note(skipped: Iterable[str]) -> list[str]:
    """Return a note that names the skipped files and folders; none if nothing was skipped."""
    names = sorted(set(skipped))
    more = f" and {len(names) - 8:,} others" if len(names) > 8 else ""
    return [f"skipped, not part of the data: {', '.join(names[:8])}{more}"] if names else []
