"""What a JPEG engine takes, on images that Pillow writes in every kind it can, and on headers patched by hand."""

import io

import numpy as np
import pytest
from helpers.images import encoded, picture
from PIL import Image

from mimcl.pipeline.image_headers import jpeg_engine_refusal


def jpeg(mode="RGB", size=(64, 48), **options) -> np.ndarray:
    file = io.BytesIO()
    picture(0, *size).convert(mode).save(file, "JPEG", **options)
    return np.frombuffer(file.getvalue(), np.uint8)


def patched(data: np.ndarray, offset: int, value: int, marker: int = 0xC0) -> np.ndarray:
    """A copy with one byte after the marker changed."""
    place, copy = bytes(data).index(bytes([0xFF, marker])), data.copy()
    copy[place + offset] = value
    return copy


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (jpeg(), None),
        (jpeg("L"), None),
        (jpeg(subsampling="4:4:4"), None),
        (jpeg(subsampling="4:2:2"), None),
        (jpeg(subsampling="4:2:0"), None),
        (jpeg(progressive=True), "progressive"),
        (jpeg("CMYK"), "CMYK"),
        (patched(jpeg(), 11, 0x41), "4:1:1 chroma"),
        (patched(jpeg(), 11, 0x42), "4:1:0 chroma"),
        (patched(jpeg(), 1, 0xC9), "arithmetic coding"),
        (patched(jpeg(), 1, 0xC1), "extended sequential"),
        (patched(jpeg(), 1, 0xC3), "lossless or hierarchical"),
        (patched(jpeg(), 4, 1, marker=0xDA), "several scans"),
        (patched(jpeg(), 5, 0x50), "huge"),  # 20,480 rows and some
        (jpeg()[:20], "unreadable header"),
        (jpeg()[:2], "no JPEG"),
        (np.frombuffer(encoded("png"), np.uint8), "no JPEG but png"),
        (np.frombuffer(encoded("webp"), np.uint8), "no JPEG but webp"),
        (np.frombuffer(encoded("rotated"), np.uint8), None),  # the thumbnail's header does not count
    ],
)
def test_headers(data, expected):
    assert jpeg_engine_refusal(data) == expected


def test_no_cut_or_flipped_header_raises():
    data = jpeg()
    for end in range(0, 700, 3):
        jpeg_engine_refusal(data[:end])
    rng = np.random.default_rng(0)
    for place in range(2, 640):
        copy = data.copy()
        copy[place] = rng.integers(256)
        assert isinstance(jpeg_engine_refusal(copy), str | None)


def test_pillow_agrees_about_progressive():
    for progressive in (False, True):
        data = jpeg(progressive=progressive)
        with Image.open(io.BytesIO(data)) as image:
            assert ("progressive" in image.info) == (jpeg_engine_refusal(data) == "progressive")
