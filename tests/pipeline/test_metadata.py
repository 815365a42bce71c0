"""Images with megabytes of texts and colour profiles, and with metadata that are not valid."""

import io
import json
import struct
import subprocess
import sys
import zlib
from functools import partial

import numpy as np
import pytest
from helpers.images import picture
from PIL import ImageCms

from mimcl.pipeline.dali import DaliDecoder
from mimcl.pipeline.decode import Encoded, ReferenceDecoder
from mimcl.pipeline.examine import NotUsable, examine
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.shards import PackConfig, pack
from mimcl.pipeline.sources.folder import image_folder
from mimcl.pipeline.verify import verify

MB = 1 << 20
NOISE = np.random.default_rng(0).integers(32, 127, 16 * MB, np.uint8).tobytes()
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def saved(kind: str, **options) -> bytes:
    file = io.BytesIO()
    picture(0).save(file, kind, **options)
    return file.getvalue()


def png(*chunks: tuple[bytes, bytes], last: bool = False) -> bytes:
    """A PNG with these chunks before its pixels, or after them if they come last."""
    whole = saved("PNG")
    place = len(whole) - 12 if last else 33
    made = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    return whole[:place] + b"".join(made) + whole[place:]


def jpeg(*segments: tuple[int, bytes]) -> bytes:
    """A JPEG with these APPn segments in front of all others."""
    whole = saved("JPEG", quality=95)
    made = [struct.pack(">BBH", 0xFF, 0xE0 + number, len(data) + 2) + data for number, data in segments]
    return whole[:2] + b"".join(made) + whole[2:]


def profile(nbytes: int) -> bytes:
    return struct.pack(">I", nbytes) + SRGB[4:] + NOISE[: nbytes - len(SRGB)]


def ztxt(text: bytes) -> tuple[bytes, bytes]:
    return b"zTXt", b"k\0\0" + zlib.compress(text)


def iccp(nbytes: int) -> tuple[bytes, bytes]:
    return b"iCCP", b"p\0\0" + zlib.compress(profile(nbytes))


def in_segments(content: bytes) -> list[tuple[int, bytes]]:
    parts = [content[first : first + 65_000] for first in range(0, len(content), 65_000)]
    return [(2, b"ICC_PROFILE\0" + bytes([number + 1 & 255, len(parts) & 255]) + p) for number, p in enumerate(parts)]


KEPT = {
    "2 MB of zTXt": lambda: png(ztxt(NOISE[: 2 * MB])),
    "20 MB of zTXt from few bytes": lambda: png(ztxt(bytes(20 * MB))),
    "zTXt after the pixels": lambda: png(ztxt(NOISE[: 2 * MB]), last=True),
    "100 texts of 1 MB": lambda: png(*[ztxt(bytes(MB))] * 100),
    "10 MB of tEXt": lambda: png((b"tEXt", b"k\0" + NOISE[: 10 * MB])),
    "compressed iTXt": lambda: png((b"iTXt", b"k\0\1\0en\0k\0" + zlib.compress(NOISE[: 3 * MB]))),
    "XMP of a PNG": lambda: png((b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + NOISE[: 3 * MB])),
    "2 MB of iCCP": lambda: png(iccp(2 * MB)),
    "12 MB of iCCP, too large for DALI": lambda: png(iccp(12 * MB)),
    "iCCP that is not zlib": lambda: png((b"iCCP", b"p\0\0nonsense")),
    "eXIf that is not EXIF": lambda: png((b"eXIf", b"nonsense" * 99)),
    "300 APP segments": lambda: jpeg(*[(number % 11 + 3, NOISE[:65_000]) for number in range(300)]),
    "4 MB of ICC in a JPEG": lambda: jpeg(*in_segments(profile(4 * MB))),
    "EXIF that is none": lambda: jpeg((1, b"Exif\0\0" + b"nonsense" * 999)),
    "empty EXIF": lambda: jpeg((1, b"Exif\0\0")),
    "EXIF that points to itself": lambda: jpeg(
        (1, b"Exif\0\0" + struct.pack("<2sHI H HHII I", b"II", 42, 8, 1, 0x8769, 4, 1, 8, 8))
    ),
    "an index of images that is none": lambda: jpeg((2, b"MPF\0nonsense")),
    "Photoshop's block cut short": lambda: jpeg((13, b"Photoshop 3.0\0" + b"8BIM\x04\x04\xff\xff\xff")),
    "XMP of a WebP": lambda: saved("WEBP", lossless=True, xmp=NOISE[: 5 * MB]),
    "ICC and EXIF of a WebP": lambda: saved("WEBP", lossless=True, icc_profile=NOISE[: 5 * MB], exif=b"nonsense" * 99),
}
BOMBS = {
    "one chunk": lambda: png(ztxt(bytes(40 * MB))),
    "iCCP": lambda: png((b"iCCP", b"p\0\0" + zlib.compress(bytes(40 * MB)))),
    "compressed iTXt": lambda: png((b"iTXt", b"k\0\1\0en\0k\0" + zlib.compress(bytes(40 * MB)))),
    "many chunks": lambda: png(*[ztxt(bytes(16 * MB))] * 9),
}


FLIPS = np.zeros(2, bool)


@pytest.mark.parametrize("name", KEPT)
def test_metadata_do_not_change_the_image(name):
    data = KEPT[name]()
    header = examine(data, decode=True)
    assert (header.width, header.height) == (64, 48)
    plain = {"jpg": jpeg, "png": png, "webp": partial(saved, "WEBP", lossless=True)}[header.extension]()
    both = Encoded([np.frombuffer(each, np.uint8) for each in (plain, data)], np.array([[0, 0, 64, 48]] * 2), FLIPS)
    reference = ReferenceDecoder(32, 1).decode(both)
    (dali,) = DaliDecoder(32, 2, 1, 64 * 48, gpu=False)([both])
    for decoded in (reference, dali):
        assert not decoded.failures
        np.testing.assert_array_equal(decoded.images[1], decoded.images[0])


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_of_text_are_refused(name):
    with pytest.raises(NotUsable, match="unreadable png header: (Decompressed data too large|Too much memory used)"):
        examine(BOMBS[name]())


def test_they_are_packed_and_verified(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for number, make in enumerate([*KEPT.values(), *BOMBS.values()]):
        (source / f"{number:02d}.jpg").write_bytes(make())
    # In processes of their own, which have to have Pillow's limits raised as well.
    pack(image_folder(source), tmp_path / "out", PackConfig(shard_mb=20, workers=2, decode=True), on_progress=id)
    rejected = [json.loads(line)["path"] for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert rejected == [f"{number:02d}.jpg" for number in range(len(KEPT), len(KEPT) + len(BOMBS))]
    assert ShardIndex.load(tmp_path / "out").samples == len(KEPT)
    assert verify(tmp_path / "out", True, 1, id) == []


def test_nothing_is_printed_about_metadata(tmp_path):
    path = tmp_path / "odd.jpg"
    path.write_bytes(KEPT["an index of images that is none"]())
    program = f"""
import pathlib
from mimcl.pipeline.examine import examine
print(examine(pathlib.Path({str(path)!r}).read_bytes(), decode=True).width)
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (found.stdout, found.stderr) == ("64\n", "")
