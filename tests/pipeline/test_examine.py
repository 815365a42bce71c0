"""Recognising images, their sizes, and truncated files."""

import io
import re
import struct
import zlib

import pytest
from helpers.images import FORMATS, ORIENTATION, encoded, picture
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from mimcl.pipeline.examine import MAX_PIXELS, Header, NotUsable, examine, extension_of

KINDS = list(FORMATS)
JPEGS = [kind for kind in KINDS if FORMATS[kind][0] == "jpg"]
WHOLE = {kind: encoded(kind) for kind in KINDS}


def reason(data: bytes, **options) -> str:
    with pytest.raises(NotUsable) as error:
        examine(data, **options)
    assert "0x" not in str(error.value)  # an address would differ from run to run
    return str(error.value)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("decode", [False, True])
def test_whole_images_are_accepted(kind, decode):
    assert examine(WHOLE[kind], decode) == Header(FORMATS[kind][0], 64, 48)


@pytest.mark.parametrize("kind", KINDS)
def test_every_cut_is_rejected(kind):
    data = WHOLE[kind]
    cuts = range(len(data)) if len(data) < 2100 else [*range(600), *range(600, len(data) - 40, 17)]
    for cut in [*cuts, *range(len(data) - 40, len(data))]:
        reason(data[:cut])


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(KINDS), st.integers(0, 2**32), st.tuples(*[st.integers(1, 90)] * 2), st.data())
def test_cuts_of_any_image(kind, seed, size, data):
    whole = encoded(kind, seed, *size)
    assert examine(whole) == Header(FORMATS[kind][0], *size)
    cut = data.draw(st.integers(0, len(whole) - 1), "cut")
    reason(whole[:cut])


def test_the_end_marker_of_a_thumbnail_does_not_count():
    data = WHOLE["rotated"]
    thumbnail = data.index(b"\xff\xd9")
    assert data.count(b"\xff\xd9") == 2
    for cut in range(thumbnail, len(data)):
        reason(data[:cut])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tail", [b"\0", b"\xff", b"trailing bytes \xff\xd8\xff\xda\x00\x0c" * 50])
def test_bytes_after_the_end_are_accepted(kind, tail):
    assert examine(WHOLE[kind] + tail) == examine(WHOLE[kind])


@pytest.mark.parametrize("kind", JPEGS)
def test_fill_bytes_before_the_end_marker(kind):
    assert examine(WHOLE[kind][:-2] + b"\xff\xff\xff\xd9").width == 64


def test_restart_markers_are_data():
    file = io.BytesIO()
    picture(1).save(file, "JPEG", restart_marker_blocks=1)
    data = file.getvalue()
    assert len(re.findall(rb"\xff[\xd0-\xd7]", data)) > 8
    assert examine(data).height == 48
    for cut in range(len(data) - 300, len(data)):
        reason(data[:cut])


def test_png_without_its_end():
    data = WHOLE["png"]
    assert "truncated" in reason(data[:-12])
    assert "truncated" in reason(data[:-12] + chunk(b"tEXt", b"IEND\0IEND"))  # a text chunk, not the end
    assert "truncated" in reason(data[:-4])


@pytest.mark.parametrize("kind", ["webp", "lossless"])
def test_webp_shorter_than_its_length_field(kind):
    data = WHOLE[kind]
    length = struct.unpack_from("<I", data, 4)[0]
    assert length + 8 == len(data)
    reason(data[:4] + struct.pack("<I", length + 2) + data[8:])
    reason(data[:-1])


def test_empty_and_foreign_files():
    assert reason(b"") == "empty file"
    for data in (b"a text about images\n", b"GIF89a" + bytes(100), b"\xff\xd8", b"RIFF\x04\0\0\0WAVE", bytes(4096)):
        assert reason(data) == "not a JPEG, PNG or WebP image"
    assert "header" in reason(b"\xff\xd8\xff" + b"no marker" * 20)
    assert "header" in reason(b"\x89PNG\r\n\x1a\n" + b"no chunk" * 20)
    assert "header" in reason(b"RIFF\x80\0\0\0WEBP" + b"no chunk" * 20)


@pytest.mark.parametrize("kind", KINDS)
def test_extension_is_by_content(kind):
    assert extension_of(WHOLE[kind]) == FORMATS[kind][0]
    assert extension_of(memoryview(WHOLE[kind])) == FORMATS[kind][0]


def png_header(width, height) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def jpeg_header(width, height) -> bytes:
    data = bytearray(WHOLE["baseline"])
    frame = data.index(b"\xff\xc0")
    struct.pack_into(">HH", data, frame + 5, height, width)
    return bytes(data)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("make", [png_header, jpeg_header])
def test_too_many_pixels_by_header(make):
    sizes = [(65_000, 65_000), (MAX_PIXELS // 10_000 + 1, 10_000)]  # the second is within Pillow's own limit
    for width, height in sizes + ([(50_000, 50_000)] if make is png_header else []):
        assert "more than 178,000,000 pixels" in reason(make(width, height))
        assert "more than 178,000,000 pixels" in reason(make(width, height), decode=True)
    assert examine(make(MAX_PIXELS // 10_000, 10_000)).width == MAX_PIXELS // 10_000


def test_size_is_of_the_stored_orientation():
    image = Image.open(io.BytesIO(WHOLE["rotated"]))
    assert image.getexif()[ORIENTATION] == 6
    assert set(image.getexif().get_ifd(ExifTags.IFD.IFD1)) == {0x0201, 0x0202}  # it has a thumbnail
    assert examine(WHOLE["rotated"]) == Header("jpg", 64, 48)


def test_decoding_catches_damage_inside():
    png = WHOLE["png"]
    place = png.index(b"IDAT") + 40
    webp = WHOLE["webp"]
    jpeg = bytearray(WHOLE["baseline"])
    tables = jpeg.index(b"\xff\xc4") + 5  # the numbers of Huffman codes of each length
    jpeg[tables : tables + 16] = b"\xf0" * 16
    for data in (
        png[:place] + bytes(200) + png[place + 200 :],
        webp[:40] + b"\xff" * (len(webp) - 40),
        bytes(jpeg),
    ):
        examine(data)
        assert "does not decode" in reason(data, decode=True)
