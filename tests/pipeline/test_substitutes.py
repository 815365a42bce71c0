"""Bad samples are replaced, as a function of the draw; if they must not be replaced, they are named."""

import io

import numpy as np
import pytest
import torch
from helpers.bad_samples import broken_png, flip_byte, reading_can_fail, unreadable
from helpers.images import picture
from helpers.streams import BATCH, DRAWS, SEED, SIDE, WINDOW, Windows, make_stream, read_until_error

from mimcl.curriculum.config import CurriculumConfig
from mimcl.curriculum.plan import Plan
from mimcl.pipeline.augment import central_crops, hash64, random_crops
from mimcl.pipeline.batch_shares import BatchShares
from mimcl.pipeline.decode import decode_one
from mimcl.pipeline.decoder_choice import make_decoder
from mimcl.pipeline.files import DataError
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.plan import InOrderPlan
from mimcl.pipeline.shards import PackConfig, pack
from mimcl.pipeline.sources.folder import image_folder
from mimcl.pipeline.store import ShardStore
from mimcl.pipeline.stream import ReadOptions, Stream

SAMPLES = 24
FLIPPED, BROKEN, UNREADABLE = {2, 3, 11}, {5, 6, 17}, {8} if reading_can_fail() else set()


def packed(folder, broken) -> ShardIndex:
    """JPEGs, and PNGs with the right hash that no decoder decodes."""
    (folder / "src").mkdir()
    for number in range(SAMPLES):
        jpeg = io.BytesIO()
        picture(number, 64 + number % 5, 48 + number % 7).save(jpeg, "JPEG", quality=90)
        (folder / "src" / f"{number:03d}.jpg").write_bytes(broken_png(number) if number in broken else jpeg.getvalue())
    pack(image_folder(folder / "src"), folder / "out", PackConfig(), on_progress=lambda count: None)
    index = ShardIndex.load(folder / "out")
    assert index.samples == SAMPLES
    return index


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """Several samples that are bad in each of the three ways."""
    index = packed(tmp_path_factory.mktemp("damaged"), BROKEN)
    for sample_id in FLIPPED:
        flip_byte(index, sample_id)
    for sample_id in UNREADABLE:
        index = unreadable(index, sample_id)
    return index


def plan_of(kind: str):
    if kind == "hashed":
        return Windows(SAMPLES)
    distances = np.linspace(0, 1, SAMPLES, dtype=np.float32)
    config = {"multinomial": {}, "systematic": {"resampling": "systematic"}, "passes": {"share": 0.0}}[kind]
    config = CurriculumConfig(name="proto", r0=0.3, window=WINDOW, **config)
    sizes = {"samples": SAMPLES, "draws": DRAWS, "batch_size": BATCH}
    return Plan(config, distances=distances, seed=SEED, hash64=hash64, **sizes)


def collect(index, kind, *, decoder="reference", world_size=1, micro=8, **options) -> dict:
    """The columns of all ranks in order of the draws, and all bad samples, in order of theirs."""
    rows = {name: [] for name in ("draws", "sample_ids", "labels", "distances", "images")}
    bad = []
    for rank in range(world_size):
        made, _ = make_decoder(decoder, SIDE, micro, 2, index.largest)
        ranks = {"rank": rank, "world_size": world_size}
        for batch in make_stream(index, plan_of(kind), decoder=made, micro=micro, **ranks, **options):
            for name, into in rows.items():
                into.append(np.asarray(getattr(batch, name)))
            bad += batch.bad
            assert {item.draw for item in batch.bad} <= set(batch.draws.tolist())
    joined = {name: np.concatenate(parts) for name, parts in rows.items()}
    order = np.argsort(joined["draws"])
    return {name: column[order] for name, column in joined.items()} | {"bad": sorted(bad, key=lambda item: item.draw)}


def assert_same(one, other, images=True):
    assert one["bad"] == other["bad"]
    for name in ("draws", "sample_ids", "labels", "distances", *(["images"] if images else [])):
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def expected_of(kind):
    """(sample ids, distances, [(draw, bad sample)]) according to the plan, draw by draw."""
    plan, bad = plan_of(kind), []
    ids, distances = np.empty(DRAWS, np.int64), np.empty(DRAWS, np.float32)
    for draw in range(DRAWS):
        window = plan.window(draw // WINDOW)
        at = draw - window.first_draw
        ids[draw], distances[draw] = window.sample_ids[at], window.distances[at]
        retry = 0
        while ids[draw] in FLIPPED | BROKEN | UNREADABLE:
            bad.append((draw, int(ids[draw])))
            ids[draw : draw + 1], distances[draw : draw + 1] = plan.substitutes(window.number, np.array([draw]), retry)
            retry += 1
    return ids, distances, bad


KINDS = ["hashed", "multinomial", "systematic", "passes"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_draw_gets_its_first_good_substitute(index, kind):
    found = collect(index, kind)
    ids, distances, bad = expected_of(kind)
    np.testing.assert_array_equal(found["draws"], np.arange(DRAWS))
    np.testing.assert_array_equal(found["sample_ids"], ids)
    np.testing.assert_array_equal(found["distances"], distances)
    np.testing.assert_array_equal(found["labels"], index.label[ids])
    assert [(item.draw, item.sample_id) for item in found["bad"]] == bad
    assert {sample_id for _, sample_id in bad} == FLIPPED | BROKEN | UNREADABLE
    again = [pair for pair, before in zip(bad[1:], bad, strict=False) if pair[0] == before[0]]
    assert {sample_id for _, sample_id in again} & BROKEN  # a bad substitute in either way
    assert {sample_id for _, sample_id in again} & FLIPPED
    reasons = {item.sample_id: (item.key, item.shard, item.reason) for item in found["bad"]}
    for sample_id, (key, shard, reason) in reasons.items():
        assert key == f"{sample_id:09d}"
        assert shard == ("speed" if sample_id in UNREADABLE else "train-000000.tar")
        if sample_id in FLIPPED:
            assert "do not match the index" in reason
        elif sample_id in UNREADABLE:
            assert "Invalid argument" in reason
        else:
            assert reason.startswith("it does not decode: ")


def test_pixels_are_those_of_the_substitute_in_the_draws_box(index):
    found = collect(index, "multinomial")
    boxes, flips = random_crops(SEED)(
        found["draws"], index.width[found["sample_ids"]], index.height[found["sample_ids"]]
    )
    data = ShardStore(index).read(found["sample_ids"])
    for draw, image in enumerate(found["images"]):
        expected = decode_one(data[draw], boxes[draw].tolist(), flips[draw], SIDE)
        np.testing.assert_array_equal(image.transpose(1, 2, 0), expected, err_msg=f"draw {draw}")


@pytest.mark.parametrize("decoder", ["reference", "dali-cpu", pytest.param("dali-gpu", marks=pytest.mark.gpu)])
@pytest.mark.parametrize(
    "options",
    [{"world_size": 2}, {"world_size": 3, "micro": 5, "prefetch": 1}, {"micro": 32}, {"prefetch": 1}, {"start": 96}],
    ids=str,
)
def test_nothing_depends_on_how_it_is_read(index, decoder, options):
    if decoder == "dali-gpu" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    start = options.get("start", 0)
    whole, found = collect(index, "multinomial"), collect(index, "multinomial", decoder=decoder, **options)
    cut = {name: column[start:] for name, column in whole.items() if name != "bad"}
    cut["bad"] = [item for item in whole["bad"] if item.draw >= start]
    assert_same(found, cut, images=decoder == "reference")
    replaced = np.isin(found["draws"], [item.draw for item in found["bad"] if item.sample_id in BROKEN])
    # Substitutes for undecodable images have exactly the reference's pixels, all others similar ones.
    np.testing.assert_array_equal(found["images"][replaced], cut["images"][replaced])
    assert np.abs(found["images"].astype(int) - cut["images"].astype(int)).mean() < 0.3


@pytest.mark.parametrize("broken", [range(0), range(0, SAMPLES, 2), range(SAMPLES)], ids=["read", "both", "decode"])
@pytest.mark.parametrize("decoder", ["reference", "dali-cpu"])
def test_if_all_samples_are_bad_the_stream_stops_after_the_last_retry(tmp_path, broken, decoder):
    index, plan = packed(tmp_path, broken), Windows(SAMPLES)
    for sample_id in set(range(SAMPLES)) - set(broken):
        flip_byte(index, sample_id)
    made, _ = make_decoder(decoder, SIDE, 8, 2, index.largest)
    batches, error = read_until_error(make_stream(index, plan, decoder=made))
    assert batches == []
    assert isinstance(error, DataError)
    assert "\n" not in str(error)
    assert "16 other samples tried for draw 0" in str(error)
    assert [retry for draw, retry in plan.retried if draw == 0] == list(range(16))
    last, _ = plan.substitutes(0, np.array([0]), 15)
    assert f"sample {last[0]:09d} in {index.root / 'train-000000.tar'} is bad" in str(error)


@pytest.mark.parametrize(
    ("sample_id", "reason"), [(11, "its bytes do not match the index"), (17, "it does not decode")]
)
@pytest.mark.parametrize("decoder", ["reference", "dali-cpu"])
def test_an_in_order_plan_replaces_nothing(index, sample_id, reason, decoder):
    made, _ = make_decoder(decoder, SIDE, 4, 2, index.largest)
    plan = InOrderPlan(np.array([0, 1, 4, 7, 9, sample_id, 10, 12]))
    batches, error = read_until_error(make_stream(index, plan, central_crops, decoder=made, batch=4, micro=4))
    assert [batch.sample_ids.tolist() for batch in batches] == [[0, 1, 4, 7]]  # all earlier batches
    assert isinstance(error, DataError)
    assert "\n" not in str(error)
    assert f"sample {sample_id:09d} in {index.root / 'train-000000.tar'} is bad: {reason}" in str(error)


@pytest.mark.parametrize("decoder", ["reference", "dali-cpu"])
def test_bad_samples_that_are_kept_are_black_and_listed(index, decoder, tmp_path):
    made, _ = make_decoder(decoder, SIDE, 4, 2, index.largest)
    options, shares = ReadOptions(keep_bad=True), BatchShares(4, 4)
    stream = Stream(InOrderPlan(np.arange(SAMPLES)), index, made, central_crops, shares, options, seed=0)
    batches = list(stream)
    images = torch.cat([batch.images for batch in batches])
    black = {place for place in range(SAMPLES) if not images[place].any()}
    assert black == FLIPPED | BROKEN | UNREADABLE
    assert [bad.sample_id for batch in batches for bad in batch.bad] == sorted(black)
    assert all(bad.draw == bad.sample_id for batch in batches for bad in batch.bad)
    whole = packed(tmp_path, BROKEN)
    for place in set(range(SAMPLES)) - black:
        (alone,) = Stream(InOrderPlan(np.array([place])), whole, made, central_crops, shares, seed=0)
        torch.testing.assert_close(images[place], alone.images[0], rtol=0, atol=0)


def test_a_missing_shard_is_not_a_bad_sample(tmp_path):
    index = packed(tmp_path, set())
    stream = iter(make_stream(index, prefetch=1))
    next(stream)
    (index.root / "train-000000.tar").rename(tmp_path / "elsewhere")
    (index.root / "train-000000.tar").write_bytes(b"short")
    with open(tmp_path / "elsewhere", "r+b") as file:
        file.truncate(1000)
    batches, error = read_until_error(stream)
    assert all(batch.bad == () for batch in batches)
    assert isinstance(error, DataError)
    assert "train-000000.tar has 5 bytes" in str(error)
