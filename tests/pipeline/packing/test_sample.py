"""Shrinking images: using the JPEG decoder's scaling, the result is close to that of full decoding."""

import io

import numpy as np
import pytest
from helpers.images import FORMATS, picture
from PIL import Image

from mimcl.pipeline.colours import to_rgb
from mimcl.pipeline.packing import sample
from mimcl.pipeline.packing.pack_config import PackConfig
from mimcl.pipeline.packing.sample import prepare
from mimcl.pipeline.sources.item import FileItem

KINDS = ("baseline", "progressive", "grey", "rotated")


@pytest.fixture(scope="module")
def photograph():
    """Return an image with detail at all scales, the coarsest being the strongest."""
    width, height = 1601, 1200
    rng, pixels = np.random.default_rng(3), np.full((height, width, 3), 128, np.float32)
    for scale, strength in ((100, 45), (30, 25), (9, 14), (3, 9)):
        small = rng.standard_normal((height // scale + 2, width // scale + 2, 3), np.float32) * strength + 128
        coarse = Image.fromarray(small.clip(0, 255).astype(np.uint8))
        pixels += np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32) - 128
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("short_side", [64, 149, 150, 151, 256, 599])
def test_shrinking_while_decoding_is_close_to_full_decoding(tmp_path, photograph, kind, short_side):
    """Within 6 of 255 levels on average; this image has much finer detail than photographs (within 4)."""
    (tmp_path / "image").write_bytes(FORMATS[kind][1](photograph))
    item = FileItem("image", -1, (tmp_path / "image").stat().st_size, tmp_path / "image")
    made = prepare(item, PackConfig(short_side=short_side))
    image = Image.open(io.BytesIO(made.data))
    size = (round(1601 * short_side / 1200), short_side)
    assert (made.changed, made.header.width, made.header.height) == (True, *size)
    assert (image.size, image.mode) == (size, "RGB")
    whole = to_rgb(Image.open(tmp_path / "image")).resize(size, Image.Resampling.LANCZOS)
    again = io.BytesIO()
    whole.save(again, "JPEG", quality=sample.JPEG_QUALITY)
    expected = np.asarray(Image.open(again), np.int16)
    assert np.abs(np.asarray(image, np.int16) - expected).mean() < 6


@pytest.mark.parametrize(("short_side", "decoded"), [(240, 240), (239, 240), (241, 480), (60, 60), (59, 60), (10, 60)])
def test_the_decoder_scales_to_no_less_than_the_short_side(tmp_path, monkeypatch, short_side, decoded):
    picture(1, 640, 480).save(tmp_path / "image", "JPEG")
    seen = []

    def to_rgb_seen(image):
        seen.append(image.size)
        return to_rgb(image)

    monkeypatch.setattr(sample, "to_rgb", to_rgb_seen)
    item = FileItem("image", -1, (tmp_path / "image").stat().st_size, tmp_path / "image")
    prepare(item, PackConfig(short_side=short_side))
    assert [min(size) for size in seen] == [decoded]
