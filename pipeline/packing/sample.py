"""From an item to what is packed of it: read, examined, perhaps made smaller."""

from __future__ import annotations

import io
from dataclasses import dataclass

import xxhash
from PIL import Image

from mimcl.pipeline.colours import to_rgb
from mimcl.pipeline.examine import EXTENSIONS, Header, NotUsable, examine
from mimcl.pipeline.files import DataError
from mimcl.pipeline.packing.pack_config import PackConfig
from mimcl.pipeline.sources.item import Item

JPEG_QUALITY = 95


@dataclass(frozen=True)
class Sample:
    """The bytes to pack, and whether they differ from the source's."""

    data: bytes
    header: Header
    xxh64: int
    changed: bool


def read(item: Item) -> bytes:
    """The item's bytes. Raises OSError, and DataError where they are not as many as were listed."""
    data = item.read()
    if item.exact and len(data) != item.nbytes:
        raise DataError(
            f"{item.name} had {item.nbytes:,} bytes when the source was listed and has {len(data):,} now: the source "
            "is changing; wait until it is complete, then pack it with --overwrite"
        )
    return data


def prepare(item: Item, config: PackConfig) -> Sample | str:
    """The sample, or the reason why there is none. Raises DataError for a source that is changing."""
    try:
        data = read(item)
        header = examine(data, config.decode)
        changed = 0 < config.short_side < min(header.width, header.height)
        if changed:
            data, header = _shrink(data, header, config.short_side)
    except NotUsable as reason:
        return str(reason)
    except OSError as error:
        return f"unreadable: {error.strerror or error}"
    return Sample(data, header, xxhash.xxh64_intdigest(data), changed)


def _shrink(data: bytes, header: Header, short_side: int) -> tuple[bytes, Header]:
    """The image with `short_side` pixels on its short side, as RGB in its own format, without metadata."""
    scale = short_side / min(header.width, header.height)
    size = (max(1, round(header.width * scale)), max(1, round(header.height * scale)))
    try:
        image = Image.open(io.BytesIO(data))
        image.draft("RGB", size)  # a JPEG is decoded at 1/2, 1/4 or 1/8, to no less than `size`; others as they are
        image = to_rgb(image).resize(size, Image.Resampling.LANCZOS)
    except Exception as error:
        raise NotUsable(f"does not decode: {error}") from None
    image.info = {}  # of which Pillow would write comments, colour profiles and transparency
    encoded = io.BytesIO()
    image.save(encoded, EXTENSIONS[header.extension], quality=JPEG_QUALITY)
    return encoded.getvalue(), Header(header.extension, *size)
