"""Check whether a file is a usable image, and its size, from magic bytes, header and end marker."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError

from mimcl.pipeline.pillow import open_image

MAX_PIXELS = 178_000_000  # larger images count as decompression bombs, as for Pillow
EXTENSIONS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}  # Pillow's names of the formats

# In JPEG's entropy-coded data 0xff is followed by a stuffed zero, a restart marker or fill; otherwise it is a marker.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_STANDALONE = {0x01, *range(0xD0, 0xD9)}
_TAIL = 64  # bytes at the end of a file, which almost always contain the image's end
_SOF0, _SOF1, _EOI, _SOS = 0xC0, 0xC1, 0xD9, 0xDA


class NotUsable(ValueError):
    """The bytes cannot be packed; the message is the reason as written to rejected.jsonl."""


@dataclass(frozen=True)
class Header:
    """Extension by content, and size in pixels of the stored orientation."""

    extension: str
    width: int
    height: int


def examine(data: bytes | memoryview, decode: bool = False) -> Header:
    """Check header, dimensions and the format's end marker; with `decode`, decode every pixel as well.

    EXIF rotation is not applied. Raises NotUsable with the reason.
    """
    if not data:
        raise NotUsable("empty file")
    extension = extension_of(data)
    if extension is None:
        raise NotUsable("not a JPEG, PNG or WebP image")
    try:
        image = open_image(data, EXTENSIONS[extension])
        width, height = image.size
    except Image.DecompressionBombError:
        raise NotUsable(f"more than {MAX_PIXELS:,} pixels") from None
    except UnidentifiedImageError:  # its message contains a memory address
        raise NotUsable(f"unreadable {extension} header") from None
    except Exception as error:
        raise NotUsable(f"unreadable {extension} header: {error}") from None
    if width * height > MAX_PIXELS:
        raise NotUsable(f"{width} x {height} is more than {MAX_PIXELS:,} pixels")
    if not _COMPLETE[extension](data):
        raise NotUsable(f"truncated: the {extension} data end before the image does")
    if decode:
        try:
            image.load()
        except Exception as error:
            raise NotUsable(f"does not decode: {error}") from None
    return Header(extension, width, height)


def extension_of(data: bytes | memoryview) -> str | None:
    """jpg, png or webp by the first bytes; None for anything else."""
    head = bytes(data[:12])
    if head.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "webp"
    return None


def _jpeg_is_complete(data: bytes | memoryview) -> bool:
    # Skip segments by their length, so that the end marker of an embedded thumbnail does not count.
    position, components = 2, None
    while found := _MARKER.search(data, position):
        code, start = data[found.start() + 1], found.end()
        if code == _EOI:
            return True
        position = start
        if code not in _STANDALONE:
            if start + 2 > len(data):
                return False
            position += struct.unpack_from(">H", data, start)[0]
        if code in (_SOF0, _SOF1):
            components = data[start + 7 : start + 8]
        # In the data of the only scan, these two bytes can only be the end marker. If not found, the search continues.
        only_scan = code == _SOS and data[start + 2 : start + 3] == components
        if only_scan and b"\xff\xd9" in bytes(data[max(position, len(data) - _TAIL) :]):
            return True
    return False


def _png_is_complete(data: bytes | memoryview) -> bool:
    position = 8
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        position += 12 + length
        if kind == b"IEND":
            return position <= len(data)
    return False


def _webp_is_complete(data: bytes | memoryview) -> bool:
    return struct.unpack_from("<I", data, 4)[0] + 8 <= len(data)


_COMPLETE = {"jpg": _jpeg_is_complete, "png": _png_is_complete, "webp": _webp_is_complete}
