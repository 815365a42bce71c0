"""List the members of a tar, or of a tar inside it, by reading headers only."""

from __future__ import annotations

import errno
import os
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from mimcl.pipeline.files import DataError, open_regular
from mimcl.pipeline.sources.archives.tar_headers import (
    BLOCK,
    CONTINUATION,
    EXTENDED,
    VOLUME_LABEL,
    extended_fields,
    ordinary,
    parse,
)
from mimcl.pipeline.sources.names import to_utf8

_MAX_EXTENDED_BYTES = 1 << 20  # of long names and extended headers before a member; usually some hundred
_ZEROS_CHUNKS = 1 << 14, 1 << 20  # bytes read at first and at most after the end of a tar; tar itself pads to 10 KiB
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"\x1f\x9d": "compress",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
    b"LZIP": "lzip",
}
_JOINED = "several tars joined; all are read, as tar -i does (other programs read only the first)"
_NO_END = "no end-of-archive blocks; check that the tar is complete"


class Member(NamedTuple):
    """A member of a tar. A hard link is the file that it links to."""

    name: str  # as stored, with forward slashes
    kind: str  # file, folder, symbolic link, or what else it is, such as device
    offset: int  # of its content in the outermost file
    nbytes: int
    target: str = ""  # of a symbolic link, as stored


class TarReader:
    """An open file that is, or contains, tars. Thread-safe.

    `oddities` are pairs (name, what is odd) of the tars that were listed to their end; see `tar_notes`.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._file = open_regular(path)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
        self.path = path
        status = os.fstat(self._file.fileno())
        self.size, self.modified = status.st_size, status.st_mtime_ns
        self.oddities: list[tuple[str, str]] = []

    def read(self, offset: int, nbytes: int) -> bytes:
        """Return up to `nbytes` bytes, fewer at the end of the file. Raises DataError if the disk fails."""
        try:
            return os.pread(self._file.fileno(), nbytes, offset)
        except OSError as error:
            raise DataError(f"{self.path} cannot be read at byte {offset:,}: {error.strerror}") from None

    def members(self, start: int = 0, stop: int | None = None, inner: str = "") -> Iterator[Member]:
        """Yield the members of the tar in bytes [start, stop), in order; `inner` is the name of a tar inside the file.

        Tars that follow the end of the first, as `cat a.tar b.tar` joins them, are read as well. Raises DataError if
        the bytes are not tars, compressed or truncated, or if anything else than zeros follows an end.
        """
        stop = self.size if stop is None else stop
        where = str(self.path) + (f": {to_utf8(inner)}" if inner else "")
        linkable: dict[str, Member] = {}  # by name, for hard links
        at, resumed, joined, ends_with_zeros = start, -1, False, True
        while at < stop:
            block = self.read(at, min(BLOCK, stop - at))
            if ends_with_zeros := bool(block) and not (block[:1].strip(b"\0") or block.strip(b"\0")):
                at = resumed = self._after_zeros(at, stop)
                continue
            member: Member | None
            if found := ordinary(block):
                member, after = Member(found[0], "file", at + BLOCK, found[1]), at + BLOCK + _padded(found[1])
            else:
                member, after = self._unusual(at, stop, where, at == start, at == resumed)
            joined |= at == resumed
            at = after
            if member is None:
                continue
            if member.offset + member.nbytes > stop:
                raise DataError(
                    f"{where} is truncated within its member {to_utf8(member.name)!r:.200}; download it again"
                )
            if member.kind == "hard link":
                target = member.target.removeprefix("./")
                linked = linkable.get(target) or linkable.get(f"./{target}")
                member = linked._replace(name=member.name) if linked else member._replace(kind="broken hard link")
            if member.kind != "folder":
                linkable[member.name] = member
            yield member
        if joined:
            self.oddities.append((where, _JOINED))
        if not ends_with_zeros:
            self.oddities.append((where, _NO_END))

    def _unusual(self, at: int, stop: int, where: str, first: bool, resumed: bool) -> tuple[Member | None, int]:
        """Parse the member whose headers start at `at`; return it, if it is one, and where the next one starts."""
        start, fields = at, dict[bytes, bytes]()
        while True:
            block = self.read(at, max(0, min(BLOCK, stop - at)))
            try:
                if len(block) < BLOCK:
                    raise tarfile.HeaderError("shorter than a header")
                header = parse(block)
            except tarfile.HeaderError as error:
                if at == start and (first or resumed):
                    raise DataError(_not_a_tar(where, block, at, resumed, error)) from None
                if len(block) < BLOCK:
                    raise DataError(f"{where} is truncated within a header; download it again") from None
                raise DataError(f"{where} is damaged at byte {at:,}: {error}; download it again") from None
            if header.nbytes < 0:
                raise DataError(f"{where} has a member of {header.nbytes} bytes at byte {at:,}; it is damaged")
            if header.type not in (*EXTENDED, tarfile.XGLTYPE):
                break
            after = at + BLOCK + _padded(header.nbytes)
            if after - start > _MAX_EXTENDED_BYTES:
                raise DataError(f"{where} has over {_MAX_EXTENDED_BYTES:,} header bytes for a member; it is damaged")
            if after > stop:
                raise DataError(f"{where} is truncated within its headers; download it again")
            try:
                found = extended_fields(header.type, self.read(at + BLOCK, header.nbytes))
            except ValueError as error:
                raise DataError(f"{where}: the headers at byte {start:,} cannot be read ({error})") from None
            at = after
            if header.type != tarfile.XGLTYPE:
                fields = found | fields
                continue
            _check_global(where, found)
            if not fields:  # of all following members, such as a comment
                return None, at
        try:
            header = header.extended(fields)
        except ValueError as error:
            raise DataError(f"{where}: the headers at byte {start:,} cannot be read ({error})") from None
        if header.nbytes < 0:
            raise DataError(f"{where} has a member of {header.nbytes} bytes at byte {start:,}; it is damaged")
        if header.type == CONTINUATION:
            raise DataError(_later_volume(where))
        offset = at + BLOCK
        if block[156:157] == tarfile.GNUTYPE_SPARSE:
            more = block[482]
            while more and offset < stop:  # further blocks of the map of holes
                more, offset = self.read(offset, BLOCK).ljust(BLOCK, b"\0")[504], offset + BLOCK
        after = offset + _padded(header.stored)
        if header.type == VOLUME_LABEL:
            return None, after
        target = header.target if header.kind.endswith("link") else ""
        return Member(header.name, header.kind, offset, header.stored, target), after

    def _after_zeros(self, at: int, stop: int) -> int:
        """Return the start of the first block from `at` on that is not all zeros, or `stop`; skip holes of the file."""
        size, largest = _ZEROS_CHUNKS
        while at < stop:
            try:
                data_at = os.lseek(self._file.fileno(), at, os.SEEK_DATA)
            except OSError as error:  # not supported by the file system, or no data until the end of the file
                data_at = stop if error.errno == errno.ENXIO else at
            if (at := max(at, data_at // BLOCK * BLOCK)) >= stop:
                break
            chunk = self.read(at, min(size, stop - at))
            rest = chunk.lstrip(b"\0")
            at += len(chunk) - len(rest)
            if rest or not chunk:
                return at // BLOCK * BLOCK if rest else stop
            size = min(2 * size, largest)
        return stop


def tar_notes(oddities: Iterable[tuple[str, str]]) -> list[str]:
    """Return a note for each kind of oddity of tars, with one of the tars as an example."""
    names: dict[str, list[str]] = {}
    for name, what in sorted(oddities):
        names.setdefault(what, []).append(name)
    return [
        f"{found[0]}{f' and {len(found) - 1:,} more tars' if len(found) > 1 else ''}: {what}"
        for what, found in names.items()
    ]


def _padded(nbytes: int) -> int:
    return -(-nbytes // BLOCK) * BLOCK


def _check_global(where: str, fields: dict[bytes, bytes]) -> None:
    if b"GNU.volume.filename" in fields:
        raise DataError(_later_volume(where))
    wrong = [key for key in fields if key in (b"path", b"linkpath", b"size") or key.startswith(b"GNU.sparse.")]
    if wrong:
        raise DataError(f"{where} has one {wrong[0].decode()} for all its members in a global header; pack it again")


def _later_volume(where: str) -> str:
    return f"{where} is a later volume of a tar; unpack all volumes with tar -M and pack the folder"


def _not_a_tar(where: str, block: bytes, at: int, resumed: bool, error: object) -> str:
    compressed = next((kind for magic, kind in _COMPRESSED.items() if block.startswith(magic)), None)
    if resumed:
        what = f"a compressed file ({compressed})" if compressed else f"not a tar ({error})"
        return f"{where} ends before byte {at:,}, but bytes follow that are {what}; remove them or download it again"
    if compressed:
        return f"{where} is compressed ({compressed}), so images cannot be read in place; decompress it first"
    return f"{where} is not a tar ({error})"
