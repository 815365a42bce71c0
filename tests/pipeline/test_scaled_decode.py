"""JPEGs decoded at a smaller scale: which, how close to decoding at full size, and the same by every decoder."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from mimcl.pipeline.decode import Encoded, ReferenceDecoder, decode_one
from mimcl.pipeline.decoder_choice import make_decoder
from mimcl.pipeline.files import DataError
from mimcl.pipeline.scaled_decode import scalable, scale_of

SIZE = 32


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Waves of some pixels' length, so that a shift by a pixel shows."""
    phase = np.random.default_rng(seed).uniform(0, 6, 3)
    y, x = np.mgrid[0:height, 0:width]
    waves = np.sin(x[..., None] / 17 + phase) * np.cos(y[..., None] / 23 + phase)
    return Image.fromarray((128 + 100 * waves).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "JPEG", **options) -> np.ndarray:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return np.frombuffer(file.getvalue(), np.uint8)


@pytest.mark.parametrize(
    ("side", "scale"), [(31, 1), (32, 1), (64, 1), (127, 1), (128, 4), (255, 4), (256, 8), (400, 8)]
)
def test_the_smallest_scale_that_leaves_enough_pixels(side, scale):
    data = encoded(picture(500, 400))
    assert scale_of(data, [3, 0, side, 400], SIZE) == scale_of(data, [3, 0, 400, side], SIZE) == scale
    assert scalable([data], np.array([[3, 0, side, 400]], np.int32), SIZE).tolist() == [scale > 1]


@pytest.mark.parametrize(
    ("kind", "mode", "wanted"),
    [("JPEG", "RGB", 8), ("JPEG", "L", 8), ("JPEG", "CMYK", 1), ("PNG", "RGB", 1), ("WEBP", "RGB", 1)],
)
def test_only_jpegs_of_ordinary_colours_are_scaled(kind, mode, wanted):
    assert scale_of(encoded(picture(500, 400).convert(mode), kind), [0, 0, 400, 400], SIZE) == wanted


# Odd sizes and offsets: pixels of the smaller image do not line up with the box.
@pytest.mark.parametrize("box", [(0, 0, 501, 377), (13, 7, 250, 180), (199, 175, 302, 202), (373, 249, 128, 128)])
@pytest.mark.parametrize("options", [{"quality": 90}, {"quality": 90, "progressive": True, "subsampling": 0}])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pixels_are_close_to_those_at_full_size(box, options, flip, mode):
    data = encoded(picture(501, 377).convert(mode), **options)
    full, scaled = (decode_one(data, list(box), flip, SIZE, scaled).astype(int) for scaled in (False, True))
    assert scaled.shape == (SIZE, SIZE, 3)
    assert 0 < np.abs(scaled - full).max() <= 12
    assert np.abs(scaled - full).mean() < 1.5
    shifted = np.abs(np.roll(full, 1, axis=1) - full)[:, 1:-1].mean()
    assert np.abs(scaled - full).mean() < shifted / 2


def batch() -> Encoded:
    """Large and small boxes, a PNG and CMYK."""
    images = [encoded(picture(500, 400, seed)) for seed in range(4)]
    images += [encoded(picture(500, 400), "PNG"), encoded(picture(500, 400).convert("CMYK"))]
    boxes = [(0, 0, 500, 400), (41, 30, 130, 129), (100, 100, 40, 200), (5, 5, 300, 300), (0, 0, 400, 400)]
    return Encoded(images, np.array([*boxes, boxes[-1]], np.int32), np.arange(len(images)) % 2 == 0)


@pytest.mark.parametrize("name", ["dali-cpu", "reference"])
def test_decoders_scale_the_same_images_to_the_same_pixels(name):
    whole, size = batch(), len(batch().data)
    decoder, _ = make_decoder(name, SIZE, size, 2, 500 * 400, scaled=True)
    ((images, failures),) = decoder([whole])
    ((expected, _),) = ReferenceDecoder(SIZE, 2, scaled=True)([whole])
    assert decoder.scaled
    assert failures == []
    is_scaled = scalable(whole.data, whole.boxes, SIZE)
    assert is_scaled.tolist() == [True, True, False, True, False, False]
    assert torch.equal(images[is_scaled], expected[is_scaled])
    assert (images.float() - expected.float()).abs().mean() < 0.3
    plain, _ = make_decoder(name, SIZE, size, 2, 500 * 400)
    ((unscaled, _),) = plain([whole])
    differs = [not torch.equal(one, other) for one, other in zip(images, unscaled, strict=True)]
    assert differs == is_scaled.tolist()


def test_a_batch_of_scaled_images_only_and_no_batch_at_all():
    decoder, _ = make_decoder("dali-cpu", SIZE, 6, 2, 500 * 400, scaled=True)
    whole = batch()
    large = Encoded(whole.data[:2], whole.boxes[:2], whole.flips[:2])
    ((images, failures),) = decoder([large])
    assert failures == []
    assert images.shape == (2, 3, SIZE, SIZE)
    assert torch.equal(images, ReferenceDecoder(SIZE, 1, scaled=True).decode(large).images)
    assert list(decoder([])) == []


@pytest.mark.parametrize("name", ["dali-cpu", "reference"])
@pytest.mark.parametrize("damage", ["empty", "header", "garbage"])
def test_what_does_not_decode_is_named_and_the_others_are_unchanged(name, damage):
    whole = batch()
    broken = {
        "empty": b"\xff\xd8\xff",
        "header": whole.data[1][:300].tobytes(),
        "garbage": b"\xff\xd8\xff" + b"x" * 999,
    }
    data = [whole.data[0], np.frombuffer(broken[damage], np.uint8), *whole.data[2:]]
    decoder, _ = make_decoder(name, SIZE, len(data), 2, 500 * 400, scaled=True)
    ((good, _),) = decoder([whole])
    ((images, ((place, reason),)),) = decoder([Encoded(data, whole.boxes, whole.flips)])
    assert place == 1
    assert reason.startswith("it does not decode: ")
    assert (images[1] == 0).all()
    others = [0, *range(2, len(data))]
    assert torch.equal(images[others], good[others])


def test_the_gpu_decoder_is_refused_in_one_line():
    with pytest.raises(DataError) as error:
        make_decoder("dali-gpu", SIZE, 4, 1, 100, scaled=True)
    assert "cannot decode at a smaller scale (data.scaled_decode)" in str(error.value)
    assert "\n" not in str(error.value)
