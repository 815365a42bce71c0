"""Turn an item into the sample to pack: read it, examine it, shrink it if requested."""

from __future__ import annotations

import io
from dataclasses import dataclass

import xxhash
from PIL import Image

from mimcl.pipeline.colours import to_rgb
from mimcl.pipeline.examine import EXTENSIONS, Header, NotUsable, examine
from mimcl.pipeline.files import DataError
from mimcl.pipeline.packing.pack_config import PackConfig
from mimcl.pipeline.pillow import open_image
from mimcl.pipeline.sources.item import Item

JPEG_QUALITY = 95


@dataclass(frozen=True)
class Sample:
    """The bytes to pack; `changed` says whether they differ from the source."""

    data: bytes
    header: Header
    xxh64: int
    changed: bool


def read(item: Item) -> bytes:
    """Return the item's bytes. Raises OSError, and DataError if their number is not the listed one."""
    data = item.read()
    if item.exact and len(data) != item.nbytes:
        raise DataError(
            f"{item.name} had {item.nbytes:,} bytes when the source was listed and now has {len(data):,}: the source "
            "is changing; wait until it is complete, then pack it with --overwrite"
        )
    return data


def prepare(item: Item, config: PackConfig) -> Sample | str:
    """Return the sample, or the reason why it is rejected. Raises DataError if the source is changing."""
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
    """Return the image resized to `short_side` pixels, as RGB in its original format without metadata."""
    scale = short_side / min(header.width, header.height)
    size = (max(1, round(header.width * scale)), max(1, round(header.height * scale)))
    try:
        image: Image.Image = open_image(data)
        image.draft("RGB", size)  # decodes a JPEG at 1/2, 1/4 or 1/8, at least at `size`
        image = to_rgb(image).resize(size, Image.Resampling.LANCZOS)
    except Exception as error:
        raise NotUsable(f"does not decode: {error}") from None
    image.info = {}  # else Pillow writes comments, colour profiles and transparency
    encoded = io.BytesIO()
    image.save(encoded, EXTENSIONS[header.extension], quality=JPEG_QUALITY)
    return encoded.getvalue(), Header(header.extension, *size)
