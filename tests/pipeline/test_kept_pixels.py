"""Images that are kept decoded: the draws, boxes, bad samples and pixels of the stream that reads and decodes them."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.bad_samples import broken_png, flip_byte
from helpers.images import picture, write_flat
from helpers.streams import BATCH, DRAWS, SEED, SIDE, Windows, assert_same, collect, make_stream
from PIL import Image

from mimcl.pipeline import kept_pixels
from mimcl.pipeline.augment import random_views
from mimcl.pipeline.data_config import DataConfig
from mimcl.pipeline.decode import ReferenceDecoder
from mimcl.pipeline.decoder_choice import make_decoder
from mimcl.pipeline.files import DataError
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.kept_pixels import KeptPixels, pixel_bytes, require_room
from mimcl.pipeline.shards import PackConfig, pack
from mimcl.pipeline.sources.folder import image_folder


def packed(folder) -> ShardIndex:
    pack(image_folder(folder / "src"), folder / "out", PackConfig(), on_progress=lambda count: None)
    return ShardIndex.load(folder / "out")


def photos(folder, sizes) -> ShardIndex:
    (folder / "src").mkdir()
    for number, (width, height) in enumerate(sizes):
        picture(number, width, height).save(folder / "src" / f"{number:03d}.jpg", quality=90)
    return packed(folder)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Images of one size, of several small sizes and all formats, and of sizes that a CPU resizes one by one."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("equal", "small", "large")}
    write_flat(folders["small"] / "src", 22, width=60, height=50)
    return {
        "equal": photos(folders["equal"], [(SIDE, SIDE)] * 24),
        "small": packed(folders["small"]),
        "large": photos(folders["large"], [(150 + number, 120) for number in range(12)]),
    }


def kept(index, **options):
    return KeptPixels(index, SIDE, 2, **options)


def differences(index, decoder) -> tuple[float, float, int]:
    """The mean, the mean of the worst image, and the largest difference of pixels from a named decoder's."""
    other, _ = make_decoder(decoder, SIDE, BATCH, 2, index.largest)
    one, two = (collect(index, decoder=of)["images"].astype(np.int16) for of in (kept(index), other))
    apart = np.abs(one - two)
    return float(apart.mean()), float(apart.reshape(len(apart), -1).mean(axis=1).max()), int(apart.max())


@pytest.mark.parametrize("name", ["equal", "small", "large"])
def test_draws_boxes_and_columns_are_those_of_the_reference(sets, name):
    expected, found = collect(sets[name]), collect(sets[name], decoder=kept(sets[name]))
    assert found["images"].shape == (DRAWS, 3, SIDE, SIDE)
    for column in expected.keys() - {"images"}:
        np.testing.assert_array_equal(found[column], expected[column], err_msg=column)


def test_small_images_have_the_pixels_of_the_reference(sets):
    assert differences(sets["equal"], "reference") == (0.0, 0.0, 0)


@pytest.mark.parametrize("decoder", ["reference", "dali-cpu"])
@pytest.mark.parametrize(("name", "mean", "worst", "largest"), [
    ("equal", 0.05, 0.2, 6), ("small", 0.2, 0.6, 12), ("large", 0.2, 0.6, 12)
])  # fmt: skip
def test_pixels_differ_from_those_of_decoders_within_the_stated_bounds(sets, name, mean, worst, largest, decoder):
    found = differences(sets[name], decoder)
    assert all(value <= bound for value, bound in zip(found, (mean, worst, largest), strict=True)), found


@pytest.mark.parametrize("name", ["equal", "small", "large"])
def test_nothing_depends_on_how_it_is_divided_or_where_it_begins(sets, name):
    decoder = kept(sets[name])
    whole = collect(sets[name], decoder=decoder)
    for options in ({"world_size": 3, "micro": 5}, {"micro": 1, "prefetch": 1}, {"micro": 32, "prefetch": 9}):
        assert_same(collect(sets[name], decoder=decoder, **options), whole)
    resumed = collect(sets[name], decoder=decoder, start=3 * BATCH)
    assert_same(resumed, {column: values[3 * BATCH :] for column, values in whole.items()})


def test_products_in_parts_are_the_same(sets, monkeypatch):
    whole = collect(sets["small"], decoder=kept(sets["small"]))
    monkeypatch.setattr(kept_pixels, "_VALUES", 3 * 60 * 60 * 3)
    assert_same(collect(sets["small"], decoder=kept(sets["small"])), whole)


@pytest.mark.parametrize("name", ["equal", "small", "large"])
def test_views_are_independent_crops_of_the_same_images(sets, name):
    index, views = sets[name], random_views(SEED, 3)
    expected = torch.cat([batch.images for batch in make_stream(index, transform=views)])
    found = torch.cat([batch.images for batch in make_stream(index, transform=views, decoder=kept(index))])
    assert len(found) == 3 * DRAWS
    assert (found.int() - expected.int()).abs().float().mean() < 0.2
    assert not torch.equal(found[:8], found[8:16])  # of view 0 and view 1


def test_bad_images_are_named_and_replaced_as_without(tmp_path):
    """A changed byte is found when it is read, and a PNG with broken pixels when it is decoded."""
    (tmp_path / "src").mkdir()
    for number in range(12):
        path = tmp_path / "src" / f"{number:03d}.png"
        path.write_bytes(broken_png(number)) if number in (3, 4) else picture(number).save(path)
    index = packed(tmp_path)
    flip_byte(index, 7)
    decoder = kept(index)
    assert decoder.bad == 3
    expected, found = (list(make_stream(index, decoder=of)) for of in (ReferenceDecoder(SIDE, 2), decoder))
    assert sum(len(batch.bad) for batch in expected) > DRAWS / 12
    for one, other in zip(found, expected, strict=True):
        assert one.bad == other.bad
        for column in ("draws", "sample_ids", "labels", "distances"):
            np.testing.assert_array_equal(getattr(one, column), getattr(other, column), err_msg=column)
        assert (one.images.int() - other.images.int()).abs().float().mean() < 0.2


def test_a_shard_that_is_gone_is_an_error_at_the_start(tmp_path):
    index = photos(tmp_path, [(30, 30)] * 3)
    (index.root / "train-000000.tar").unlink()
    with pytest.raises(DataError, match="train-000000.tar"):
        kept(index)


def test_nothing_is_read_after_the_start(tmp_path):
    index = photos(tmp_path, [(30, 30)] * 8)
    decoder = kept(index)
    (index.root / "train-000000.tar").unlink()
    assert sum(len(batch.draws) for batch in make_stream(index, Windows(8), decoder=decoder, ordered=True)) == DRAWS


def test_progress_counts_every_image(sets):
    counts = []
    kept(sets["small"], on_progress=counts.append)
    assert sum(counts) == sets["small"].samples


@pytest.mark.parametrize(("copies", "free", "fits"), [(1, 1.3, True), (1, 1.2, False), (3, 3.8, True), (3, 3.7, False)])
def test_what_does_not_fit_is_refused_with_the_memory_it_needs(sets, monkeypatch, copies, free, fits):
    index = sets["equal"]
    needed = 24 * 3 * SIDE * SIDE
    assert pixel_bytes(index) == needed
    monkeypatch.setattr(kept_pixels, "free_memory", lambda: math.ceil(free * needed))
    if fits:
        require_room(index, torch.device("cpu"), copies)
        return
    each = " in each of 3 processes" if copies > 1 else ""
    with pytest.raises(DataError) as raised:
        require_room(index, torch.device("cpu"), copies)
    assert str(raised.value) == (
        f"data.keep_decoded needs 0.0 MB{each} for 24 decoded images, more than 80% of the free memory "
        f"({math.ceil(free * needed) / 1e6:,.1f} MB); leave it out, or pack smaller images"
    )


def test_sizes_are_counted_in_64_bits(sets):
    index = replace(sets["equal"], width=np.full(24, 40_000, np.int32), height=np.full(24, 40_000, np.int32))
    assert pixel_bytes(index) == 24 * 3 * 40_000**2
    with pytest.raises(DataError, match="needs 115,200.0 MB for 24 decoded images"):
        require_room(index, torch.device("cpu"))


def test_it_is_refused_together_with_a_smaller_scale():
    with pytest.raises(ValueError, match="scaled_decode has no effect .* data.keep_decoded keeps; leave one out"):
        DataConfig(keep_decoded=True, scaled_decode=True)


def test_an_image_of_one_pixel(tmp_path):
    (tmp_path / "src").mkdir()
    Image.new("RGB", (1, 1), (9, 8, 7)).save(tmp_path / "src" / "a.png")
    index = packed(tmp_path)
    found = collect(index, decoder=kept(index))["images"]
    assert (found == np.array([9, 8, 7], np.uint8)[:, None, None]).all()


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["equal", "small", "large"])
def test_kept_on_a_gpu_they_have_the_same_pixels_as_by_matrices_on_a_cpu(sets, name, monkeypatch):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    monkeypatch.setattr(kept_pixels, "_MATRIX_SIDE", 10_000)
    index = sets[name]
    expected = torch.cat([batch.images for batch in make_stream(index, decoder=kept(index))])
    found = [batch.images.cpu() for batch in make_stream(index, decoder=kept(index, device="cuda"), device="cuda")]
    assert torch.equal(torch.cat(found), expected)


@pytest.mark.parametrize("name", ["equal", "small", "large"])
def test_the_side_may_follow_the_step(sets, name):
    def side_at(draw):
        return 10 if draw < DRAWS // 2 else SIDE

    expected, found = (
        list(make_stream(sets[name], side_at=side_at, decoder=decoder)) for decoder in (None, kept(sets[name]))
    )
    for one, other in zip(expected, found, strict=True):
        assert one.images.shape == other.images.shape
        assert (one.images.int() - other.images.int()).abs().float().mean() < 0.2
    assert {batch.images.shape[-1] for batch in found} == {10, SIDE}
