"""Images that DALI refuses, in the stream: their draws and all others have the reference's pixels."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from helpers.bad_samples import broken_png
from helpers.images import encoded, picture

from mimcl.pipeline.augment import random_crops
from mimcl.pipeline.batch_shares import BatchShares
from mimcl.pipeline.decoder_choice import make_decoder
from mimcl.pipeline.files import DataError
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.plan import InOrderPlan
from mimcl.pipeline.shards import PackConfig, pack
from mimcl.pipeline.sources.folder import image_folder
from mimcl.pipeline.stream import ReadOptions, Stream

SAMPLES, BATCH, SIZE = 56, 8, 32
# First, middle and last place of three batches in a row; sample g is draw g.
REFUSED = [2 * BATCH, 3 * BATCH + BATCH // 2, 5 * BATCH - 1]
# The largest mean and 99th percentile of one crop's differences from the reference, in grey levels. That of nvJPEG is
# an estimate until it has been measured.
TOLERANCES = {"dali-cpu": (0.3, 3), "dali-gpu": (1.0, 4)}


def with_unknown_chunk(seed: int) -> bytes:
    """A PNG with an unknown critical chunk: Pillow ignores it, DALI's library refuses it."""
    png, chunk = encoded("png", seed), b"ABCD" + b"content"
    after_header = 8 + 25
    extra = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return png[:after_header] + extra + png[after_header:]


def packed(folder, special: dict[int, bytes]) -> ShardIndex:
    """SAMPLES packed images, with other bytes for the numbers in `special`."""
    (folder / "src").mkdir()
    for number in range(SAMPLES):
        jpeg = io.BytesIO()
        picture(number, 64 + number % 5, 48 + number % 7).save(jpeg, "JPEG", quality=90)
        (folder / "src" / f"{number:03d}.jpg").write_bytes(special.get(number, jpeg.getvalue()))
    found = image_folder(folder / "src")
    pack(found, folder / "out", PackConfig(), overwrite=False, on_progress=lambda count: None)
    index = ShardIndex.load(folder / "out")
    assert index.samples == SAMPLES
    return index


@pytest.fixture(scope="module")
def refused(tmp_path_factory):
    return packed(tmp_path_factory.mktemp("refused"), {number: with_unknown_chunk(number) for number in REFUSED})


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    special = {number: with_unknown_chunk(number) for number in REFUSED[:2]}
    return packed(tmp_path_factory.mktemp("broken"), special | {REFUSED[2]: broken_png(9)})


def stream(index: ShardIndex, decoder: str, prefetch: int) -> Stream:
    if decoder == "dali-gpu" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return Stream(
        InOrderPlan(np.arange(index.samples)),
        index,
        make_decoder(decoder, SIZE, BATCH, 2, index.largest)[0],
        random_crops(3),
        BatchShares(BATCH, BATCH),
        ReadOptions(prefetch),
        seed=3,
        device="cuda" if decoder == "dali-gpu" else "cpu",
    )


DALI = pytest.mark.parametrize("decoder", ["dali-cpu", pytest.param("dali-gpu", marks=pytest.mark.gpu)])
PREFETCH = pytest.mark.parametrize("prefetch", [1, 4])


@DALI
@PREFETCH
def test_every_draw_has_the_pixels_of_the_reference(decoder, prefetch, refused):
    expected = torch.cat([batch.images for batch in stream(refused, "reference", prefetch)])
    batches = list(stream(refused, decoder, prefetch))
    np.testing.assert_array_equal(np.concatenate([batch.draws for batch in batches]), np.arange(SAMPLES))
    images = torch.cat([batch.images for batch in batches]).cpu()
    for draw in range(SAMPLES):
        difference = (images[draw].float() - expected[draw].float()).abs().numpy()
        if draw in REFUSED:
            assert not difference.any(), f"draw {draw}"
        else:
            mean, percentile_99 = TOLERANCES[decoder]
            assert difference.mean() <= mean, f"draw {draw}"
            assert np.percentile(difference, 99) <= percentile_99, f"draw {draw}"


@DALI
@PREFETCH
def test_an_image_that_no_decoder_decodes_stops_the_stream_after_earlier_batches(decoder, prefetch, broken):
    run = iter(stream(broken, decoder, prefetch))
    expected = iter(stream(broken, "reference", prefetch))
    for _ in range(REFUSED[2] // BATCH):
        difference = (next(run).images.cpu().float() - next(expected).images.float()).abs()
        assert difference.mean() <= TOLERANCES[decoder][0]
    with pytest.raises(DataError, match=rf"sample 0000000{REFUSED[2]} in .*train-000000.tar is bad: "):
        next(run)
