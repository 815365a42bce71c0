"""The members of a tar, from its headers alone: contents are seeked over, nothing is kept."""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mimcl.pipeline.files import DataError, open_regular
from mimcl.pipeline.sources.layout import recordable

_BLOCK = 512
_MOST_SPECIAL = 1 << 20  # bytes of a long name or of extended headers before a member; real ones have some hundred
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_LONG = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_ORDINARY = re.compile(rb"[0-7]{11}[\0 ]")


class Member(NamedTuple):
    """A regular file, a folder, or something else (a link, a device, a sparse file) in a tar."""

    name: str  # as it stands there, slashes forward
    kind: str  # "file", "folder" or "other"
    offset: int  # of its content in the outermost file
    nbytes: int


class OpenTar:
    """A file that holds a tar, perhaps in a stretch of it. ReadPlan from any thread; raises DataError for no tar."""

    def __init__(self, path: Path) -> None:
        try:
            self._file = open_regular(path)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
        self.path = path
        status = os.fstat(self._file.fileno())
        self.size, self.modified = status.st_size, status.st_mtime_ns

    def read(self, offset: int, nbytes: int) -> bytes:
        """Fewer bytes at the end of the file. Raises DataError where the disk fails."""
        try:
            return os.pread(self._file.fileno(), nbytes, offset)
        except OSError as error:
            raise DataError(f"{self.path} cannot be read at byte {offset:,}: {error.strerror}") from None

    def members(self, start: int = 0, stop: int | None = None, called: str = "") -> Iterator[Member]:
        """What the tar in bytes [start, stop) holds, in its order; `called` is that tar's name in the file.

        Raises DataError where it is no tar, is compressed, or ends before a member does.
        """
        stop = self.size if stop is None else stop
        where = f"{self.path}" + (f": {recordable(called)}" if called else "")
        at = start
        while at < stop:
            header = self.read(at, _BLOCK)
            if header == bytes(_BLOCK):  # the end; what follows is padding
                return
            member = _ordinary(header, at)
            if member is None:
                member, header = self._unusual(at, stop, where, first=at == start)
            if member is None:
                if (at := _after(header, at)) > stop:
                    raise DataError(f"{where} ends within its headers; fetch it again, whole")
                continue
            after = member.offset + -(-member.nbytes // _BLOCK) * _BLOCK
            if member.offset + member.nbytes > stop:
                raise DataError(
                    f"{where} ends before its member {recordable(member.name)!r:.200} does; fetch it again, whole"
                )
            yield member
            at = after

    def _unusual(self, at: int, stop: int, where: str, first: bool) -> tuple[Member | None, bytes]:
        """The member whose headers begin at `at`, by the library; none for headers that are of no member."""
        start, special = at, b""
        while True:
            header = self.read(at, max(0, min(_BLOCK, stop - at)))
            if len(header) < _BLOCK:
                if first and not special:
                    raise DataError(_no_tar(where, header, True, at, "shorter than a header"))
                raise DataError(f"{where} ends within a header; fetch it again, whole")
            try:
                info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
            except tarfile.HeaderError as error:
                raise DataError(_no_tar(where, header, first and not special, at, error)) from None
            if info.size < 0:
                raise DataError(f"{where} has a member of {info.size} bytes at byte {at:,}; it is damaged")
            if info.type == tarfile.XGLTYPE and not special:
                return None, header  # says things of all members that follow, such as a comment
            if info.type not in _LONG:
                break
            length = _BLOCK + -(-info.size // _BLOCK) * _BLOCK
            if len(special) + length > _MOST_SPECIAL:
                raise DataError(f"{where} has over {_MOST_SPECIAL:,} bytes of headers for a member; it is damaged")
            special += self.read(at, length)
            at += length
        kind = _kind(info)
        if b"GNU.sparse." in special:  # what is stored is a map of holes and then the rest
            kind = "other"
        elif special:
            with io.BytesIO(special + header) as headers:
                try:
                    with tarfile.open(fileobj=headers, mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
                        whole = tar.next()
                except (tarfile.TarError, ValueError, OverflowError, RecursionError, OSError) as error:
                    raise DataError(f"{where}: the headers at byte {start:,} cannot be read ({error})") from None
            if whole is None:
                raise DataError(f"{where}: the headers at byte {start:,} cannot be read")
            if whole.sparse is not None:
                kind = "other"
            elif whole.size < 0:
                raise DataError(f"{where} has a member of {whole.size} bytes at byte {start:,}; it is damaged")
            else:
                info.size = whole.size
            info.name = whole.name
        offset = at + _BLOCK
        if info.type == tarfile.GNUTYPE_SPARSE:
            more = header[482]
            while more and offset < stop:  # further blocks that say where its holes are
                more, offset = self.read(offset, _BLOCK).ljust(_BLOCK, b"\0")[504], offset + _BLOCK
        # Links, devices and folders have no content, whatever their headers say.
        has_content = kind == "file" or info.type in (*_FILES, tarfile.GNUTYPE_SPARSE)
        has_content |= info.type not in tarfile.SUPPORTED_TYPES
        return Member(info.name, kind, offset, info.size if has_content else 0), header


def _ordinary(header: bytes, at: int) -> Member | None:
    """A regular file with a short name, by far the most usual: a fifth of the library's time."""
    if header[257:262] != b"ustar" or header[156:157] not in (b"0", b"\0") or header[345:346] != b"\0":
        return None
    if len(header) < _BLOCK or not _ORDINARY.fullmatch(header[124:136]):
        return None
    try:
        if int(header[148:156].strip(b" \0"), 8) != sum(header) - sum(header[148:156]) + 256:
            return None
    except ValueError:
        return None
    name = header[:100].partition(b"\0")[0].decode("utf-8", "surrogateescape")
    if name.endswith("/"):  # a folder, in old tars
        return None
    return Member(name, "file", at + _BLOCK, int(header[124:135], 8))


def _after(header: bytes, at: int) -> int:
    size = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape").size
    return at + _BLOCK + -(-size // _BLOCK) * _BLOCK


def _kind(info: tarfile.TarInfo) -> str:
    if info.type == tarfile.DIRTYPE or (info.type == tarfile.AREGTYPE and info.name.endswith("/")):
        return "folder"
    return "file" if info.type in _FILES else "other"


def _no_tar(where: str, header: bytes, first: bool, at: int, error: object) -> str:
    if first:
        for magic, kind in _COMPRESSED.items():
            if header.startswith(magic):
                return (
                    f"{where} is compressed ({kind}): images could not be read out of its middle; decompress it first"
                )
        return f"{where} is not a tar ({error})"
    return f"{where} is damaged at byte {at:,}: {error}"
