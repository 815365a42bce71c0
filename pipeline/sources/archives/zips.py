"""A zip of images as a source: the directory is read once, images are read in place."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from mimcl.pipeline.files import DataError, open_descriptor, open_regular
from mimcl.pipeline.sources.archives.archive import archive_source
from mimcl.pipeline.sources.archives.zip_names import decoded_names
from mimcl.pipeline.sources.item import MAX_BYTES, Item, Source

_LOCAL = struct.Struct("<4s22xHH")  # a member's header: signature, ..., lengths of name and extra fields
_ENCRYPTED = 0x1
_END = struct.Struct("<4sHHHHLLH")  # the record at the end: signature, number of this disk, ..., length of a comment
_END_MAGIC = b"PK\x05\x06"
_MAX_END = _END.size + 0xFFFF
_LINK, _KIND = 0o120000, 0o170000  # bits of the Unix mode
_MAX_TARGET_BYTES = 4096  # of a symbolic link
_BOMB_BYTES = 64 << 20  # larger members that expand over 100 times are refused


@dataclass(frozen=True, slots=True)
class ZipItem(Item):
    """A member of a zip; `nbytes` is its size unpacked, `stored` its size in the zip."""

    file: Path
    offset: int  # of its header
    stored: int
    crc: int
    method: int
    encrypted: bool

    def read(self) -> bytes:
        """Return the content, checked against its CRC. Raises OSError, also for methods except stored and deflate."""
        if self.encrypted:
            raise OSError("encrypted")
        if self.method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise OSError(f"compressed by method {self.method}; only stored and deflate are supported")
        if max(self.nbytes, self.stored) > MAX_BYTES:
            raise OSError("larger than 2 GiB")
        if not 0 <= self.offset < 2**62:
            raise OSError("no member at the offset in the zip's directory")
        if self.nbytes > max(_BOMB_BYTES, 100 * self.stored):
            raise OSError("expands over 100 times, not plausible for an image")
        descriptor = open_descriptor(self.file, os.O_RDONLY)
        try:
            header = os.pread(descriptor, _LOCAL.size, self.offset)
            if len(header) < _LOCAL.size or not header.startswith(b"PK\x03\x04"):
                raise OSError("no member at the offset in the zip's directory")
            _, name, extra = _LOCAL.unpack(header)
            data = os.pread(descriptor, self.stored, self.offset + _LOCAL.size + name + extra)
        finally:
            os.close(descriptor)
        if len(data) < self.stored:
            raise OSError(f"{self.file} is truncated")
        if self.method == zipfile.ZIP_DEFLATED:
            try:
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, self.nbytes + 1)
            except zlib.error as error:
                raise OSError(f"cannot be unpacked ({error})") from None
        if len(data) != self.nbytes:
            raise OSError(f"does not have the {self.nbytes:,} bytes that the zip's directory says")
        if zlib.crc32(data) != self.crc:
            raise OSError("checksum mismatch in the zip")
        return data


def zip_images(path: Path) -> Source:
    """Return the images of a zip in the order and with the labels of the unpacked folder. Raises DataError."""
    try:
        with open_regular(path) as file:
            modified = os.fstat(file.fileno()).st_mtime_ns
            _require_whole(path, file)
            with zipfile.ZipFile(file) as opened:
                infos = opened.infolist()
            _require_single(path, file, infos)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} has a name that is not UTF-8 as it says ({error.object!r:.200}); unpack it and pack the folder"
        ) from None
    # A damaged directory makes the library raise errors of many kinds.
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error, EOFError, MemoryError) as error:
        raise DataError(f"{path} is not a readable zip ({error}); download it again") from None
    names, notes = decoded_names(path.name, infos)
    members = (
        (name, kind, _target(_item(path, name, -1, info)) if kind == "symbolic link" else info)
        for name, info in zip(names, infos, strict=True)
        for kind in (_kind(name, info),)
    )
    source = archive_source(path, members, partial(_item, path), modified)
    source.notes += notes
    return source


def _require_whole(path: Path, file: BinaryIO) -> None:
    """Raise DataError for a part of a zip over several files, as `zip -s` makes them."""
    join = f"join them with `zip -s 0 {path.with_suffix('.zip').name} --out whole.zip`"
    start = max(0, os.fstat(file.fileno()).st_size - _MAX_END)
    tail = os.pread(file.fileno(), _MAX_END, start)
    at = tail.rfind(_END_MAGIC)
    if 0 <= at <= len(tail) - _END.size and (disk := _END.unpack_from(tail, at)[1]) not in (0, 0xFFFF):
        raise DataError(f"{path} is the last of {disk + 1:,} parts of a zip; {join}")
    if at < 0 and os.pread(file.fileno(), 4, 0) == b"PK\x07\x08":
        raise DataError(f"{path} is the first of several parts of a zip; {join}")


def _require_single(path: Path, file: BinaryIO, infos: Sequence[zipfile.ZipInfo]) -> None:
    """Raise DataError if another zip ends where the first member starts, as `cat a.zip b.zip` joins them."""
    first = min((info.header_offset for info in infos), default=0)
    start = max(0, first - _MAX_END)
    before = os.pread(file.fileno(), first - start, start)
    at = before.rfind(_END_MAGIC)
    if 0 <= at <= len(before) - _END.size and at + _END.size + _END.unpack_from(before, at)[-1] == len(before):
        raise DataError(f"{path} is several zips joined (the last starts at byte {first:,}); pack each of them alone")


def _item(path: Path, name: str, label: int, info: zipfile.ZipInfo) -> ZipItem:
    encrypted = bool(info.flag_bits & _ENCRYPTED)
    places = info.header_offset, info.compress_size, info.CRC, info.compress_type, encrypted
    return ZipItem(name, label, min(info.file_size, MAX_BYTES + 1), path, *places)


def _kind(name: str, info: zipfile.ZipInfo) -> str:
    if name.endswith("/"):
        return "folder"
    unix_kind = (info.external_attr >> 16) & _KIND
    return "symbolic link" if unix_kind == _LINK else "file"


def _target(link: ZipItem) -> str:
    """Return where a symbolic link leads; nowhere if that cannot be read."""
    if link.nbytes > _MAX_TARGET_BYTES:
        return ""
    try:
        return link.read().decode("utf-8", "surrogateescape")
    except OSError:
        return ""
