"""Find out what unpacking an archive would give: its files and folders, and what is skipped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from mimcl.pipeline.sources.names import to_utf8

T = TypeVar("T")
_MAX_LINKS = 40  # followed for a name, as Linux does
_MAX_TARGET = 4096  # characters, as on Linux


@dataclass(frozen=True)
class Unpacked:
    """Paths with forward slashes and no parts "." or ".."; `files` with what the archive's reader needs to read one."""

    files: dict[str, Any]
    folders: set[str]
    notes: list[str]


def unpacked(archive: str, members: Iterable[tuple[str, str, Any]]) -> Unpacked:
    """Return the files and folders of the archive of that name, and notes.

    A member is (name, kind, place): kind is "file", "folder", "symbolic link" with its target as place, or what else it
    is, which is skipped. A link to a file of the archive is that file. If a name occurs more than once, the last member
    counts. Names that lead out of the archive are skipped.
    """
    files: dict[str, Any] = {}
    links: dict[str, str] = {}
    folders: set[str] = set()
    others: Counter[str] = Counter()
    outside: list[str] = []
    repeated: list[str] = []
    for name, kind, place in members:
        parts = [part for part in name.split("/") if part not in ("", ".")]
        path = "/".join(parts)
        if name.startswith("/") or ".." in parts or "\0" in name:
            outside.append(name)
        elif kind == "folder":
            folders.add(path)
        elif kind not in ("file", "symbolic link"):
            others[kind] += 1
        elif parts:
            if files.pop(path, None) is not None or links.pop(path, None) is not None:
                repeated.append(path)
            if kind == "file":
                files[path] = place
            else:
                links[path] = place
    folders.discard("")
    followed = follow_links(files, links)
    if broken := len(links) - len(followed):
        others["unresolved symbolic link"] = broken
    notes = []
    if others:
        notes.append(f"skipped in {archive}: {', '.join(_counted(*kind) for kind in sorted(others.items()))}")
    if outside:
        notes.append(
            f"skipped in {archive}: {len(outside):,} names that point outside the archive, such as "
            f"{to_utf8(outside[0]):.200}; make it inside the folder, with relative names (tar without -P)"
        )
    if repeated:
        notes.append(
            f"{archive} has {_counted('name', len(repeated))} more than once, such as {to_utf8(repeated[0]):.200}; "
            "the last one is used, as in unpacking"
        )
    return Unpacked(files | followed, folders, notes)


def follow_links(files: Mapping[str, T], links: Mapping[str, str]) -> dict[str, T]:
    """Return, by a link's name, the file that it leads to; links to anything else are skipped."""
    paths = {name: _followed(name, files, links) for name in links}
    return {name: files[path] for name, path in paths.items() if path is not None and path in files}


def _followed(name: str, files: Mapping[str, T], links: Mapping[str, str]) -> str | None:
    """Return the path that a name leads to; None if it leads out of the archive, in a circle or into a file."""
    done: list[str] = []
    waiting = name.split("/")[::-1]
    remaining = _MAX_LINKS
    while waiting:
        part = waiting.pop()
        if part == "..":
            if not done:
                return None
            done.pop()
        elif part not in ("", "."):
            done.append(part)
            path = "/".join(done)
            if waiting and path in files:
                return None
            if (target := links.get(path)) is not None:
                remaining -= 1
                if remaining < 0 or not 0 < len(target) <= _MAX_TARGET or target.startswith("/"):
                    return None
                done.pop()
                waiting += target.split("/")[::-1]
    return "/".join(done)


def _counted(kind: str, count: int) -> str:
    return f"{count:,} {kind}{'' if count == 1 else 's'}"
