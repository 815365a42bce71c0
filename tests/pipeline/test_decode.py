import io
import struct
import zlib

import numpy as np
import pytest
import torch
from helpers.images import encoded, picture
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import pil_to_tensor, resized_crop

from mimcl.pipeline.decode import Encoded, ReferenceDecoder
from mimcl.pipeline.decoder_choice import make_decoder
from mimcl.pipeline.files import DataError

WIDTH, HEIGHT, SIZE = 160, 120, 48
# left, top, width, height: the whole image, its corners, an odd one, single pixels, lines
BOXES = [
    (0, 0, WIDTH, HEIGHT),
    (0, 0, 70, 50),
    (WIDTH - 70, HEIGHT - 50, 70, 50),
    (13, 7, 101, 33),
    (0, 0, 1, 1),
    (WIDTH - 1, HEIGHT - 1, 1, 1),
    (0, HEIGHT - 1, WIDTH, 1),
    (WIDTH - 1, 0, 1, HEIGHT),
]


def batch(data: list[bytes], boxes, flips=None) -> Encoded:
    flips = np.zeros(len(data), bool) if flips is None else np.asarray(flips, bool)
    return Encoded([np.frombuffer(item, np.uint8) for item in data], np.array(boxes, np.int32), flips)


def reference(data: list[bytes], boxes, flips=None) -> torch.Tensor:
    ((images, failures),) = ReferenceDecoder(SIZE, 2)([batch(data, boxes, flips)])
    assert failures == []
    return images


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_equals_torchvisions_resized_crop():
    data = encoded("baseline", 1, WIDTH, HEIGHT)
    image = Image.open(io.BytesIO(data)).convert("RGB")
    images = reference([data] * len(BOXES), BOXES)
    assert images.shape == (len(BOXES), 3, SIZE, SIZE)
    assert images.dtype == torch.uint8
    for decoded, (left, top, width, height) in zip(images, BOXES, strict=True):
        expected = resized_crop(
            image, top, left, height, width, [SIZE, SIZE], InterpolationMode.BICUBIC, antialias=True
        )
        assert torch.equal(decoded, pil_to_tensor(expected))


def test_flips_mirror_the_crop_of_the_same_box():
    data, box = encoded("baseline", 1, WIDTH, HEIGHT), (13, 7, 101, 33)
    plain, mirrored = reference([data] * 2, [box] * 2, [False, True])
    assert torch.equal(mirrored, plain.flip(2))
    assert not torch.equal(mirrored, plain)


def test_16_bit_grey_is_divided_by_257():
    levels = np.array([0, 1, 128, 129, 257, 30_000, 32_896, 65_534, 65_535])
    pixels = np.broadcast_to(levels[:, None].astype(np.uint16), (9, 9))
    images = reference([png(pixels)] * 9, [(0, row, 9, 1) for row in range(9)])
    for image, level in zip(images, levels, strict=True):
        assert (image == round(level / 257)).all()


def test_16_bit_grey_looks_like_8_bit_grey():
    grey = np.asarray(picture(2, WIDTH, HEIGHT).convert("L"))
    wide, narrow = reference([png(grey.astype(np.uint16) * 257), png(grey)], [BOXES[3]] * 2)
    assert torch.equal(wide, narrow)
    assert wide.float().std() > 5  # pixels, not a saturated plane


def test_exif_rotation_is_not_applied():
    rotated = encoded("rotated", 3, WIDTH, HEIGHT)
    image = Image.open(io.BytesIO(rotated))
    assert image.getexif()[0x0112] == 6
    stored = image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    (decoded,) = reference([rotated], [(0, 0, WIDTH, HEIGHT)])
    assert torch.equal(decoded, pil_to_tensor(stored))


@pytest.mark.parametrize(
    ("kind", "mode"), [("grey", "L"), ("cmyk", "CMYK"), ("palette", "P"), ("alpha", "RGBA"), ("webp", "RGB")]
)
def test_any_mode_becomes_three_channels(kind, mode):
    data = encoded(kind, 4, WIDTH, HEIGHT)
    assert Image.open(io.BytesIO(data)).mode == mode
    (decoded,) = reference([data], [(0, 0, WIDTH, HEIGHT)])
    original = picture(4, WIDTH, HEIGHT).convert("L" if mode == "L" else "RGB").convert("RGB")
    original = pil_to_tensor(original.resize((SIZE, SIZE), Image.Resampling.BICUBIC))
    assert (decoded.float() - original.float()).abs().mean() < 12  # the palette's colours are the coarsest


def test_an_image_that_does_not_decode_is_zero_and_named():
    good = encoded("png", 5, WIDTH, HEIGHT)
    data = [good[:200], good, b"no image", good, b""]
    images, failures = ReferenceDecoder(SIZE, 2).decode(batch(data, [BOXES[0]] * 5))
    assert [place for place, _ in failures] == [0, 2, 4]
    assert "truncated" in failures[0][1]
    assert "not an image format" in failures[1][1]
    assert "0x" not in failures[1][1]  # no memory address
    assert not images[[0, 2, 4]].any()
    assert torch.equal(images[[1, 3]], reference([good] * 2, [BOXES[0]] * 2))


def test_a_decompression_bomb_is_not_unpacked():
    bomb = bytearray(encoded("png", 5, WIDTH, HEIGHT))
    bomb[16:24] = struct.pack(">II", 20_000, 10_000)
    bomb[29:33] = struct.pack(">I", zlib.crc32(bomb[12:29]))
    _, ((place, reason),) = ReferenceDecoder(SIZE, 1).decode(batch([bomb], [BOXES[0]]))
    assert place == 0
    assert "decompression bomb" in reason


def test_auto_takes_the_fastest_and_says_why(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    decoder, line = make_decoder("auto", SIZE, 4, 2, SIZE**2)
    assert decoder.name == "dali-cpu"
    assert line == "decoder dali-cpu; dali-gpu: no CUDA device"


@pytest.mark.parametrize(("name", "message"), [("dali-gpu", "no CUDA device"), ("fastest", "'fastest'")])
def test_a_decoder_that_does_not_work_is_an_error_of_one_line(monkeypatch, name, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DataError, match=message) as caught:
        make_decoder(name, SIZE, 4, 2, SIZE**2)
    assert "\n" not in str(caught.value)
    assert "reference" in str(caught.value)  # the alternative
