"""A zip of images as a source: the directory is read once, images are read in place."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from mimcl.pipeline.files import DataError, open_regular
from mimcl.pipeline.sources.archive import archive_source
from mimcl.pipeline.sources.item import MAX_BYTES, Item, Source

_LOCAL = struct.Struct("<4s22xHH")  # a member's header: signature, ..., lengths of name and extra fields
_ENCRYPTED = 0x1
_LINK, _KIND = 0o120000, 0o170000  # bits of the Unix mode
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
        descriptor = os.open(self.file, os.O_RDONLY | os.O_CLOEXEC)
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
            with zipfile.ZipFile(file) as opened:
                infos = opened.infolist()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    # A damaged directory makes the library raise errors of many kinds.
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error, EOFError, MemoryError) as error:
        raise DataError(f"{path} is not a readable zip ({error}); download it again") from None

    def item(name: str, label: int, info: zipfile.ZipInfo) -> ZipItem:
        encrypted = bool(info.flag_bits & _ENCRYPTED)
        places = info.header_offset, info.compress_size, info.CRC, info.compress_type, encrypted
        return ZipItem(name, label, min(info.file_size, MAX_BYTES + 1), path, *places)

    return archive_source(path, ((info.filename, _kind(info), info) for info in infos), item, modified)


def _kind(info: zipfile.ZipInfo) -> str:
    if info.is_dir():
        return "folder"
    return "other" if (info.external_attr >> 16) & _KIND == _LINK else "file"
