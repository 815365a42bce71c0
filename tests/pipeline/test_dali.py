"""DALI against the reference: boxes of every kind of image, and batches with images that DALI refuses."""

import io
import os
import struct
import time
import warnings
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from mimcl.pipeline.dali import DaliDecoder, reserved
from mimcl.pipeline.decode import Decoded, Encoded, ReferenceDecoder
from mimcl.pipeline.examine import MAX_PIXELS
from mimcl.pipeline.image_headers import dali_can_decode

WIDTH, HEIGHT, SIZE, BATCH = 500, 375, 224, 8
# left, top, width, height: the whole image, a corner, up- and downscaled ones, one pixel, taller than wide
BOXES = [
    (0, 0, 500, 375),
    (199, 175, 301, 200),
    (13, 7, 250, 180),
    (0, 100, 120, 140),
    (499, 374, 1, 1),
    (9, 9, 240, 320),
]
FLIPS = [False, True, False, True, False, True]
# The largest mean and 99th percentile of the differences from the reference, in grey levels. That of nvJPEG is an
# estimate until it has been measured.
TOLERANCES = {"dali-cpu": (0.3, 2), "dali-gpu": (1.0, 4)}
GPU = pytest.param("dali-gpu", marks=pytest.mark.gpu)


def natural(seed: int) -> Image.Image:
    """Smooth gradients, texture and discs with hard edges."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    slopes = rng.uniform(-3, 3, (3, 3))
    pixels = 128 + 60 * np.sin(x[..., None] / WIDTH * slopes[0] + y[..., None] / HEIGHT * slopes[1] + slopes[2])
    noise = Image.fromarray((128 + 40 * rng.standard_normal((HEIGHT, WIDTH))).clip(0, 255).astype(np.uint8))
    pixels += np.asarray(noise.filter(ImageFilter.GaussianBlur(1.2)), float)[..., None] - 128
    for _ in range(6):
        left, top, radius = rng.uniform(0, WIDTH), rng.uniform(0, HEIGHT), rng.uniform(20, 90)
        disc = ((x - left) ** 2 + (y - top) ** 2 < radius**2)[..., None]
        pixels = np.where(disc, 0.4 * pixels + 0.6 * rng.uniform(0, 255, 3), pixels)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):
        image.save(file, kind, **options)
    return file.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(rows: list[bytes], depth: int, colour: int, interlace: int = 0) -> bytes:
    """PNGs that Pillow does not write: 16-bit colour, interlacing."""
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, depth, colour, 0, 0, interlace)
    data = zlib.compress(b"".join(b"\0" + row for row in rows), 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def interlaced(image: Image.Image) -> bytes:
    pixels = np.asarray(image)
    adam7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    return png([row.tobytes() for x, y, dx, dy in adam7 for row in pixels[y::dy, x::dx]], 8, 2, interlace=1)


def wide(image: Image.Image, colour: int) -> bytes:
    """16 bits per channel, the lower eight different from the upper."""
    pixels = np.asarray(image, np.int64) * 257
    pixels = (pixels + np.random.default_rng(0).integers(-128, 129, pixels.shape)).clip(0, 65535).astype(">u2")
    return png([row.tobytes() for row in pixels], 16, colour)


def without_segment(jpeg: bytes, marker: bytes) -> bytes:
    start = jpeg.index(marker)
    return jpeg[:start] + jpeg[start + 2 + int.from_bytes(jpeg[start + 2 : start + 4]) :]


def ycck(image: Image.Image) -> bytes:
    """CMYK data whose Adobe marker says YCCK: wrong colours, which decode nevertheless."""
    data = bytearray(saved(image.convert("CMYK"), "JPEG", quality=90))
    data[data.index(b"Adobe") + 11] = 2
    return bytes(data)


def with_alpha(image: Image.Image) -> Image.Image:
    ramp = np.broadcast_to(np.linspace(0, 255, WIDTH).astype(np.uint8), (HEIGHT, WIDTH))
    image = image.copy()
    image.putalpha(Image.fromarray(ramp.copy()))
    return image


def exif() -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = 6
    return tags


KINDS = {
    "jpeg 4:4:4": lambda i: saved(i, "JPEG", subsampling="4:4:4", quality=95),
    "jpeg 4:2:2": lambda i: saved(i, "JPEG", subsampling="4:2:2"),
    "jpeg 4:2:0": lambda i: saved(i, "JPEG", subsampling="4:2:0"),
    "jpeg progressive": lambda i: saved(i, "JPEG", progressive=True, quality=90),
    "jpeg progressive 4:4:4": lambda i: saved(i, "JPEG", progressive=True, subsampling="4:4:4"),
    "jpeg restart markers": lambda i: saved(i, "JPEG", restart_marker_rows=2),
    "jpeg rgb": lambda i: saved(i, "JPEG", keep_rgb=True),
    "jpeg without jfif": lambda i: without_segment(saved(i, "JPEG"), b"\xff\xe0"),
    "jpeg grey": lambda i: saved(i.convert("L"), "JPEG"),
    "jpeg grey progressive": lambda i: saved(i.convert("L"), "JPEG", progressive=True),
    "jpeg cmyk": lambda i: saved(i.convert("CMYK"), "JPEG"),
    "jpeg cmyk without adobe": lambda i: without_segment(saved(i.convert("CMYK"), "JPEG"), b"\xff\xee"),
    "jpeg ycck": ycck,
    "jpeg rotated": lambda i: saved(i, "JPEG", exif=exif()),
    "png rgb": lambda i: saved(i, "PNG"),
    "png grey": lambda i: saved(i.convert("L"), "PNG"),
    "png palette": lambda i: saved(i.quantize(256), "PNG"),
    "png palette 4 bits": lambda i: saved(i.quantize(16), "PNG", bits=4),
    "png palette one transparent": lambda i: saved(i.quantize(256), "PNG", transparency=3),
    "png palette transparency": lambda i: saved(i.quantize(256), "PNG", transparency=bytes(range(256))),
    "png rgba": lambda i: saved(with_alpha(i), "PNG"),
    "png grey alpha": lambda i: saved(with_alpha(i.convert("L")), "PNG"),
    "png rgb transparent colour": lambda i: saved(i, "PNG", transparency=i.getpixel((5, 5))),
    "png 1 bit": lambda i: saved(i.convert("1"), "PNG"),
    "png grey 16 bits": lambda i: wide(i.convert("L"), 0),
    "png rgb 16 bits": lambda i: wide(i, 2),
    "png rgba 16 bits": lambda i: wide(with_alpha(i), 6),
    "png interlaced": interlaced,
    "png rotated": lambda i: saved(i, "PNG", exif=exif()),
    "webp lossy": lambda i: saved(i, "WEBP", quality=85),
    "webp lossless": lambda i: saved(i, "WEBP", lossless=True),
    "webp lossy alpha": lambda i: saved(with_alpha(i), "WEBP"),
    "webp lossless alpha": lambda i: saved(with_alpha(i), "WEBP", lossless=True),
    "webp animated": lambda i: saved(i, "WEBP", save_all=True, append_images=[i.rotate(180)], duration=100),
    "webp rotated": lambda i: saved(i, "WEBP", exif=exif()),
}
LEFT_TO_THE_REFERENCE = {
    *("jpeg cmyk", "jpeg cmyk without adobe", "jpeg ycck"),
    *("png 1 bit", "png rgb 16 bits", "png rgba 16 bits"),
}


@pytest.fixture(scope="module")
def image():
    return natural(0)


@pytest.fixture(scope="module")
def good(image):
    """JPEGs that differ from one another."""
    return [saved(image.rotate(angle), "JPEG", quality=90) for angle in range(0, 40, 5)]


@pytest.fixture(scope="module")
def broken(image):
    """Images with intact headers that neither DALI nor the reference decodes."""
    as_png, as_jpeg = saved(image, "PNG"), saved(image, "JPEG")
    start = as_png.index(b"IDAT") + 2000
    return {
        "png": as_png[:start] + bytes(len(as_png) - start),
        "jpeg": as_jpeg[: as_jpeg.index(b"\xff\xda") + 100],
    }


@pytest.fixture(scope="module")
def gif(image):
    """An image that only DALI refuses."""
    return saved(image.quantize(64), "GIF")


def make(name: str) -> DaliDecoder:
    if name == "dali-gpu" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return DaliDecoder(SIZE, BATCH, 2, WIDTH * HEIGHT, gpu=name == "dali-gpu")


def batch(data: list[bytes], seed: int = 0) -> Encoded:
    """Random boxes and flips, a function of seed and position."""
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, (WIDTH // 2, HEIGHT // 2), (BATCH, 2))
    sizes = rng.integers(40, (WIDTH // 2, HEIGHT // 2), (BATCH, 2))
    boxes, flips = np.concatenate([corners, sizes], 1).astype(np.int32), rng.random(BATCH) < 0.5
    return Encoded([np.frombuffer(item, np.uint8) for item in data], boxes[: len(data)], flips[: len(data)])


def reference(encoded: Encoded) -> torch.Tensor:
    return images_of(ReferenceDecoder(SIZE, 2).decode(encoded))


def images_of(decoded: Decoded) -> torch.Tensor:
    assert decoded.failures == []
    return decoded.images


def is_close(name: str, images: torch.Tensor, expected: torch.Tensor) -> bool:
    if images.shape != expected.shape or images.dtype != torch.uint8:
        return False
    difference = (images.cpu().float() - expected.float()).abs().numpy()
    mean, percentile_99 = TOLERANCES[name]
    return difference.mean() <= mean and np.percentile(difference, 99) <= percentile_99


@pytest.mark.parametrize("name", ["dali-cpu", GPU])
@pytest.mark.parametrize("kind", KINDS)
def test_pixels_are_the_references(name, kind, image, monkeypatch):
    data = np.frombuffer(KINDS[kind](image), np.uint8)
    encoded = Encoded([data] * len(BOXES), np.array(BOXES, np.int32), np.array(FLIPS))
    decoder = make(name)
    monkeypatch.setattr(decoder, "_culprits", None)  # DALI decodes it, or never gets it because of its header
    images = images_of(*decoder([encoded]))
    expected = reference(encoded)
    for decoded, same in zip(images, expected, strict=True):
        assert is_close(name, decoded, same)
    assert dali_can_decode(data) == (kind not in LEFT_TO_THE_REFERENCE)
    if kind in LEFT_TO_THE_REFERENCE:
        assert torch.equal(images.cpu(), expected)


@pytest.mark.parametrize("name", ["dali-cpu", GPU])
def test_a_batch_may_have_a_side_of_its_own(name, good, gif):
    whole = [batch(good, seed) for seed in range(4)]
    sides = [None, 16, 2 * SIZE, None]
    batches = [replace(encoded, image_size=side) for encoded, side in zip(whole, sides, strict=True)]
    # In one batch the reference decodes all images, and DALI one that is not used.
    batches[1] = replace(batches[1], data=[np.frombuffer(gif, np.uint8)] * len(good))
    for encoded, side, decoded in zip(batches, sides, make(name)(batches), strict=True):
        assert decoded.images.shape[2:] == (side or SIZE, side or SIZE)
        assert is_close(name, images_of(decoded), reference(encoded))


@pytest.mark.parametrize("name", ["dali-cpu", GPU])
def test_a_draw_has_the_same_pixels_in_any_batch(name, image, good):
    draw = batch(good[:1], seed=7)
    data, box, flip = draw.data[0], draw.boxes[0], draw.flips[0]

    def among(others: list[bytes], place: int) -> Encoded:
        around = batch(others, seed=place)
        around.data[place], around.boxes[place], around.flips[place] = data, box, flip
        return around

    neighbours = [kind(image) for kind in KINDS.values()]
    batches = [draw, among(good[:BATCH], 3), among(neighbours[10 : 10 + BATCH], 7), among(neighbours[22:25], 0)]
    decoder = make(name)
    places = (0, 3, 7, 0)
    first, *others = [images_of(decoded)[place] for decoded, place in zip(decoder(batches), places, strict=True)]
    for other in others:
        assert torch.equal(first, other)


@pytest.mark.parametrize("name", ["dali-cpu", GPU])
def test_batches_of_any_size_in_order(name, good):
    batches = [batch(good[:n], seed=n) for n in (BATCH, 3, 1, 5, BATCH, 2)]
    results = [*map(images_of, make(name)(batches))]
    assert len(results) == len(batches)
    for images, encoded in zip(results, batches, strict=True):  # all still hold their own pixels
        assert is_close(name, images, reference(encoded))


@pytest.mark.parametrize("count", [0, 1, 2])
def test_fewer_batches_than_it_runs_ahead(count, good):
    assert len(list(make("dali-cpu")([batch(good[:2])] * count))) == count


def test_takes_no_more_batches_ahead_than_its_lookahead(good):
    taken = 0

    def batches():
        nonlocal taken
        for taken in range(1, 10):  # noqa: B007
            yield batch(good[:2])

    decoder = make("dali-cpu")
    for number, _ in enumerate(decoder(batches()), 1):
        assert taken <= number + decoder.lookahead


@pytest.mark.parametrize("name", ["dali-cpu", GPU])
def test_abandoned_and_used_again(name, good):
    decoder = make(name)
    next(decoder([batch(good[:2])]))  # once, so that everything that DALI keeps is allocated

    def threads() -> int:
        return len(os.listdir("/proc/self/task"))

    before = threads()
    for seed in range(4):
        run = decoder(batch(good[:4], seed=seed + n) for n in range(20))
        assert is_close(name, images_of(next(run)), reference(batch(good[:4], seed=seed)))
        del run
    held = decoder(batch(good[:4], seed=50 + n) for n in range(20))
    next(held)  # neither finished nor closed while the next run goes on
    encoded = [batch(good[:4], seed=100 + n) for n in range(5)]
    for images, same in zip(map(images_of, decoder(encoded)), encoded, strict=True):
        assert is_close(name, images, reference(same))
    assert is_close(name, images_of(next(held)), reference(batch(good[:4], seed=51)))
    held.close()
    deadline = time.monotonic() + 30
    while threads() > before + 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threads() <= before + 2  # of the resize pool; six pipelines would have left many more


@pytest.mark.parametrize("name", ["dali-cpu", GPU])
@pytest.mark.parametrize("kind", ["png", "jpeg"])
@pytest.mark.parametrize("place", [0, BATCH // 2, BATCH - 1])
@pytest.mark.parametrize("bad", [[2], [0, 3], [2, 3, 4]])
def test_an_undecodable_image_is_zero_and_named_and_others_keep_their_pixels(name, kind, place, bad, good, broken):
    batches = [batch(good[:BATCH], seed=number) for number in range(6)]
    expected = [*map(images_of, make(name)(batches))]
    for number in bad:
        batches[number].data[place] = np.frombuffer(broken[kind], np.uint8)
    results = list(make(name)(batches))
    assert len(results) == len(batches)
    for number, (images, failures) in enumerate(results):
        if number in bad:
            assert failures == ReferenceDecoder(SIZE, 1).decode(batches[number]).failures
            assert [where for where, _ in failures] == [place]
            expected[number][place] = 0
        else:
            assert failures == []
        assert torch.equal(images, expected[number])


@pytest.mark.parametrize("name", ["dali-cpu", GPU])
def test_failures_of_the_reference_are_named_by_their_position_in_the_batch(name, image, good, broken):
    cmyk = KINDS["jpeg cmyk"](image)
    encoded = batch([good[0], cmyk, broken["png"], good[1], cmyk, broken["jpeg"], b"\xff\xd8\xff"])
    ((images, failures),) = make(name)([encoded])
    assert [place for place, _ in failures] == [2, 5, 6]
    assert all(reason.startswith("it does not decode: ") and "\n" not in reason for _, reason in failures)
    assert not images[[2, 5, 6]].any()
    whole = [0, 1, 3, 4]
    sound = Encoded([encoded.data[place] for place in whole], encoded.boxes[whole], encoded.flips[whole])
    assert is_close(name, images[whole], reference(sound))


@pytest.mark.parametrize("name", ["dali-cpu", GPU])
def test_an_image_that_only_dali_refuses_is_left_to_the_reference(name, good, gif):
    plain = [batch(good[:BATCH], seed=number) for number in range(7)]
    expected = [*map(images_of, make(name)(plain))]
    batches = [batch(good[:BATCH], seed=number) for number in range(7)]
    places = {1: [0], 2: [BATCH // 2], 3: [BATCH - 1], 5: [0, 1, BATCH - 1]}
    for number, where in places.items():
        for place in where:
            batches[number].data[place] = np.frombuffer(gif, np.uint8)
    decoder = make(name)
    for _ in range(2):
        results = [*map(images_of, decoder(batches))]
        assert len(results) == len(batches)
        for number, images in enumerate(results):
            for place in range(BATCH):
                if place in places.get(number, []):
                    assert torch.equal(images[place].cpu(), reference(batches[number])[place])
                else:
                    assert torch.equal(images[place], expected[number][place])


def claiming(data: bytes, width: int, height: int) -> bytes:
    """The same image with other sizes in its header."""
    changed, kind = bytearray(data), data[12:16]
    if data[:4] == b"\x89PNG":
        changed[16:24] = struct.pack(">II", width, height)
        changed[29:33] = struct.pack(">I", zlib.crc32(changed[12:29]))
    elif data[:2] == b"\xff\xd8":
        start = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
        changed[start + 5 : start + 9] = struct.pack(">HH", height, width)
    elif kind == b"VP8X":
        changed[24:30] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    elif kind == b"VP8L":
        changed[21:24] = (width - 1 | height - 1 << 14).to_bytes(4, "little")[:3]
        changed[24] = changed[24] & 0xF0 | height - 1 >> 10
    else:
        changed[26:30] = struct.pack("<HH", width, height)
    return bytes(changed)


BOMBS = ["jpeg 4:2:0", "jpeg progressive", "png rgb", "webp lossy", "webp lossless", "webp lossy alpha"]


@pytest.mark.parametrize("kind", BOMBS)
def test_a_header_that_claims_too_many_pixels_never_reaches_dali(kind, image, good, monkeypatch):
    data = KINDS[kind](image)
    assert claiming(data, WIDTH, HEIGHT) == data  # so this is the right field
    assert dali_can_decode(np.frombuffer(claiming(data, 16_000, 11_125), np.uint8))  # 178,000,000
    bomb = claiming(data, 16_000, 11_200)  # 179,200,000: Pillow refuses more than 178,956,970
    assert not dali_can_decode(np.frombuffer(bomb, np.uint8))
    decoder, encoded = make("dali-cpu"), batch([good[0], bomb, good[1]])
    monkeypatch.setattr(decoder, "_culprits", None)
    ((images, failures),) = decoder([encoded])
    assert [place for place, _ in failures] == [1]
    assert not images[1].any()
    assert is_close(
        "dali-cpu",
        images[[0, 2]],
        reference(Encoded([encoded.data[0], encoded.data[2]], encoded.boxes[[0, 2]], encoded.flips[[0, 2]])),
    )


@pytest.mark.parametrize("kind", BOMBS)
def test_the_gpu_leaves_large_images_to_the_reference_by_their_header(kind, image):
    data = KINDS[kind](image)
    below, above = (np.frombuffer(claiming(data, *size), np.uint8) for size in ((4000, 4000), (4000, 4001)))
    assert dali_can_decode(below, max_pixels=16_000_000)
    assert not dali_can_decode(above, max_pixels=16_000_000)
    assert dali_can_decode(above)


def test_reserved_memory_per_nvjpeg_thread_is_bounded():
    small, largest = reserved(WIDTH * HEIGHT), reserved(MAX_PIXELS)
    assert small == {"device_memory_padding": 6 * WIDTH * HEIGHT, "host_memory_padding": 4 * WIDTH * HEIGHT}
    assert largest == reserved(4_000_000) == reserved(2**31)
    threads = 16  # with one buffer each on the device, and two in pinned memory
    assert threads * largest["device_memory_padding"] < 400e6
    assert threads * 2 * largest["host_memory_padding"] < 600e6


@pytest.mark.gpu
def test_a_large_image_does_not_change_others_on_the_gpu(good):
    decoder = make("dali-gpu")
    large = natural(3).resize((4200, 4000))
    batches = [batch([*good[:3], saved(large, "JPEG")], seed=1), batch(good[:4], seed=1)]
    with_large, without = map(images_of, decoder(batches))
    assert torch.equal(with_large[:3], without[:3])
    assert torch.equal(with_large[3:].cpu(), reference(batches[0])[3:])  # more than 16 megapixels


@pytest.mark.parametrize("kind", ["jpeg 4:2:0", "png rgb", "webp lossy"])
def test_any_truncated_image_has_an_answer(kind, image):
    data = np.frombuffer(KINDS[kind](image), np.uint8)
    for length in range(64):
        assert dali_can_decode(data[:length]) in (True, False)
    assert not dali_can_decode(np.frombuffer(b"\xff\xd8\xff\xe0\0\x02garbage and no frame header", np.uint8))


def test_batches_without_an_image_for_dali(image, good):
    only = [KINDS[kind](image) for kind in sorted(LEFT_TO_THE_REFERENCE)]
    batches = [batch(good[:3]), batch(only, seed=1), batch(only[:1], seed=2), batch(good[:3], seed=3)]
    for images, encoded in zip(map(images_of, make("dali-cpu")(batches)), batches, strict=True):
        assert is_close("dali-cpu", images, reference(encoded))


@pytest.mark.parametrize("refuse", [False, True])
def test_an_error_of_the_source_is_raised_in_its_place(refuse, good, gif):
    batches = [batch(good[:3], seed=number) for number in range(3)]
    if refuse:  # while DALI fails on an earlier batch
        batches[1].data[1] = np.frombuffer(gif, np.uint8)

    def arriving():
        yield from batches
        raise OSError("no such shard")

    run = make("dali-cpu")(arriving())
    for encoded in batches:
        assert is_close("dali-cpu", images_of(next(run)), reference(encoded))
    with pytest.raises(OSError, match="no such shard"):
        next(run)


def test_a_failure_not_caused_by_an_image_is_raised(good):
    decoder = DaliDecoder(SIZE, 2, 2, WIDTH * HEIGHT, gpu=False)
    with pytest.raises(Exception, match=r"(?i)batch"):
        list(decoder([batch(good[:3])]))  # more than the decoder's batch size
