"""A zip of images as a source: its directory is read once, images are read where they lie."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from mimcl.pipeline.files import DataError, open_regular
from mimcl.pipeline.sources.archive import archived
from mimcl.pipeline.sources.item import MAX_BYTES, Item, Source

_LOCAL = struct.Struct("<4s22xHH")  # a member's own header: its mark, then how long its name and extra fields are
_ENCRYPTED = 0x1
_LINK, _KIND = 0o120000, 0o170000  # of the mode that Unix programs record
_SUSPECT = 64 << 20  # bytes: no image is larger and shrinks a hundredfold again


@dataclass(frozen=True, slots=True)
class ZipItem(Item):
    """A member of a zip; `nbytes` is its size unpacked, `stored` as it lies there."""

    file: Path
    offset: int  # of its own header
    stored: int
    crc: int
    method: int
    encrypted: bool

    def read(self) -> bytes:
        """The content, checked against its checksum. Raises OSError, also for a method that is not deflate."""
        if self.encrypted:
            raise OSError("encrypted")
        if self.method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise OSError(f"compressed by method {self.method}; only stored and deflated members are read")
        if max(self.nbytes, self.stored) > MAX_BYTES:
            raise OSError("larger than 2 GiB")
        if not 0 <= self.offset < 2**62:
            raise OSError("the zip has no member where its directory says")
        if self.nbytes > max(_SUSPECT, 100 * self.stored):
            raise OSError("grows over a hundredfold when unpacked, as no image does")
        descriptor = os.open(self.file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            header = os.pread(descriptor, _LOCAL.size, self.offset)
            if len(header) < _LOCAL.size or not header.startswith(b"PK\x03\x04"):
                raise OSError("the zip has no member where its directory says")
            _, name, extra = _LOCAL.unpack(header)
            data = os.pread(descriptor, self.stored, self.offset + _LOCAL.size + name + extra)
        finally:
            os.close(descriptor)
        if len(data) < self.stored:
            raise OSError(f"{self.file} ends before it")
        if self.method == zipfile.ZIP_DEFLATED:
            try:
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, self.nbytes + 1)
            except zlib.error as error:
                raise OSError(f"cannot be unpacked ({error})") from None
        if len(data) != self.nbytes:
            raise OSError(f"is not the {self.nbytes:,} bytes that the zip's directory says")
        if zlib.crc32(data) != self.crc:
            raise OSError("its bytes do not match the zip's checksum")
        return data


def zip_images(path: Path) -> Source:
    """The images of a zip in the order and with the labels that the unpacked folder has. Raises DataError."""
    try:
        with open_regular(path) as file:
            modified = os.fstat(file.fileno()).st_mtime_ns
            with zipfile.ZipFile(file) as opened:
                infos = opened.infolist()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    # What a damaged directory makes the library raise is of many kinds.
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error, EOFError, MemoryError) as error:
        raise DataError(f"{path} is not a zip that can be read ({error}); fetch it again, whole") from None

    def item(name: str, label: int, info: zipfile.ZipInfo) -> ZipItem:
        encrypted = bool(info.flag_bits & _ENCRYPTED)
        places = info.header_offset, info.compress_size, info.CRC, info.compress_type, encrypted
        return ZipItem(name, label, min(info.file_size, MAX_BYTES + 1), path, *places)

    return archived(path, ((info.filename, _kind(info), info) for info in infos), item, modified)


def _kind(info: zipfile.ZipInfo) -> str:
    if info.is_dir():
        return "folder"
    return "other" if (info.external_attr >> 16) & _KIND == _LINK else "file"
