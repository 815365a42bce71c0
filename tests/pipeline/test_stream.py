"""The stream is a function of the draw number; its thread ends with it, and it raises its thread's errors."""

import itertools
import math
import threading
import time
from collections import deque

import numpy as np
import pytest
import torch
from helpers.streams import (
    BATCH,
    DRAWS,
    SEED,
    SIDE,
    WINDOW,
    Awaiting,
    Spy,
    Windows,
    assert_same,
    collect,
    make_stream,
    read_until_error,
)

from mimcl.curriculum import shard_order
from mimcl.curriculum.config import CurriculumConfig
from mimcl.curriculum.plan import Plan
from mimcl.pipeline.augment import STREAM_MASK, central_crops, hash64, random_crops
from mimcl.pipeline.data_config import DataConfig
from mimcl.pipeline.decode import ReferenceDecoder
from mimcl.pipeline.files import DataError
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.plan import InOrderPlan
from mimcl.pipeline.progress import StallError
from mimcl.pipeline.store import ShardStore


@pytest.fixture(scope="module")
def index(labelled):
    return ShardIndex.load(labelled[1])


@pytest.fixture(scope="module")
def whole(index):
    return collect(index)


@pytest.fixture
def threads_left():
    """The names of the stream's threads started since the test began, without those of the decoder's pool."""
    before = set(threading.enumerate())
    return lambda: [
        thread.name for thread in threading.enumerate() if thread not in before and not thread.name.startswith("decode")
    ]


def test_augmented_images_are_those_of_their_draws(index, whole):
    def augment_batch(images, draws):
        assert threading.current_thread().name == "stream"
        return images ^ torch.from_numpy(draws).to(torch.uint8)[:, None, None, None]

    found = collect(index, world_size=2, augment_batch=augment_batch)
    flips = (found["draws"] % 256).astype(np.uint8)[:, None, None, None]
    np.testing.assert_array_equal(found["images"], whole["images"] ^ flips)


def test_a_stream_yields_whole_groups_of_the_same_draws(index, whole):
    grouped = make_stream(index, micro=20, group_size=8)
    assert [(int(batch.draws[0]), len(batch.draws)) for batch in grouped][:3] == [(0, 16), (16, 16), (32, 16)]
    assert_same(collect(index, micro=20, group_size=8, world_size=3), whole)


def test_an_in_order_plan_has_all_samples():
    plan = InOrderPlan(np.arange(0, 400_000, 3))
    ids = [plan.window(number).sample_ids for number in range(math.ceil(plan.draws / plan.window_length))]
    assert [len(part) for part in ids] == [65_536, 65_536, 2262]
    np.testing.assert_array_equal(np.concatenate(ids), np.arange(0, 400_000, 3))


# A function of the draw number


def test_the_stream_follows_the_plan_and_the_hash(whole, index):
    draws = np.arange(DRAWS)
    np.testing.assert_array_equal(whole["draws"], draws)
    plan = Windows(index.samples)
    windows = [plan.window(number) for number in range(DRAWS // WINDOW)]
    ids = np.concatenate([window.sample_ids for window in windows])
    np.testing.assert_array_equal(whole["sample_ids"], ids)
    np.testing.assert_array_equal(whole["distances"], np.concatenate([window.distances for window in windows]))
    np.testing.assert_array_equal(whole["labels"], index.label[ids])
    np.testing.assert_array_equal(whole["keys"].view(np.uint64), hash64(SEED, draws, STREAM_MASK))
    boxes, flips = random_crops(SEED)(draws, index.width[ids], index.height[ids])
    np.testing.assert_array_equal(whole["boxes"], boxes)
    np.testing.assert_array_equal(whole["flips"], flips)
    np.testing.assert_array_equal(whole["position"], (draws // BATCH + 1) * BATCH)
    np.testing.assert_allclose(whole["temperature"], 0.1 * (draws // WINDOW + 1))
    assert whole["images"].shape == (DRAWS, 3, SIDE, SIDE)
    assert len(np.unique(whole["images"].reshape(DRAWS, -1), axis=0)) > 0.95 * DRAWS  # crops of one image differ


@pytest.mark.parametrize(
    "options",
    [
        {"world_size": 2},
        {"world_size": 3},
        {"world_size": 3, "micro": 5, "prefetch": 1},
        {"prefetch": 1},
        {"prefetch": 100},
        {"micro": 5},
        {"micro": 64},
        {"micro": 1, "world_size": 2},
        {"threads": 1},
        {"threads": 7},
    ],
    ids=str,
)
def test_nothing_depends_on_how_it_is_read(index, whole, options):
    assert_same(collect(index, **options), whole)


def test_iterating_again_gives_the_same(index):
    stream = make_stream(index)
    first, second = ([batch.images for batch in stream] for _ in range(2))
    assert len(first) == DRAWS // 8
    assert torch.equal(torch.cat(first), torch.cat(second))


@pytest.mark.gpu
def test_on_a_gpu_a_dropped_batch_keeps_its_pixels_for_queued_work(index, whole):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    sums = {name: [] for name in ("images", "keys", "distances")}
    for batch in make_stream(index, prefetch=2, device="cuda"):
        torch.cuda._sleep(20_000_000)  # some 10 ms: the next batches are made before the sums below are
        for name, into in sums.items():
            into.append(getattr(batch, name).double().reshape(len(batch.draws), -1).sum(dim=1))
    for name, into in sums.items():
        expected = whole[name].astype(np.float64).reshape(DRAWS, -1).sum(axis=1)
        np.testing.assert_allclose(torch.cat(into).cpu().numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("start", [BATCH, 2 * BATCH, 5 * BATCH, DRAWS])
def test_it_resumes_at_any_batch(index, whole, start):
    if start == DRAWS:
        assert list(make_stream(index, start=start)) == []
    else:
        assert_same(collect(index, start=start), {name: column[start:] for name, column in whole.items()})
        assert_same(collect(index, start=start, world_size=2), {name: column[start:] for name, column in whole.items()})


def test_a_stream_can_start_at_a_position(index, whole):
    stream = iter(make_stream(index, micro=16))
    positions = [next(stream).position for _ in range(6)]
    stream.close()
    assert positions == [32, 32, 64, 64, 96, 96]
    assert next(iter(make_stream(index, start=positions[-1]))).draws[0] == 96


class Counted(ReferenceDecoder):
    """Counts its unfinished runs, each of which would hold memory on a GPU."""

    running = most = 0

    def __call__(self, batches):
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            yield from super().__call__(batches)
        finally:
            self.running -= 1


@pytest.mark.parametrize("released_after", [[0], [1], [3, 4], [7], [8]])
def test_released_between_steps_it_continues_with_the_same_batches_without_a_decoder(index, whole, released_after):
    decoder, before = Counted(SIDE, 2), set(threading.enumerate())
    stream, seen = make_stream(index, micro=16, decoder=decoder), {"images": [], "draws": [], "keys": []}
    batches = iter(stream)
    for step in range(DRAWS // BATCH + 1):
        if step in released_after:
            with stream.released():
                assert decoder.running == 0
                started = set(threading.enumerate()) - before
                assert not [thread for thread in started if thread.name in ("stream", "plan")]
        for batch in itertools.islice(batches, 2):
            for name, parts in seen.items():
                parts.append(np.asarray(getattr(batch, name)))
    assert decoder.most == 1
    for name, parts in seen.items():
        np.testing.assert_array_equal(np.concatenate(parts), whole[name], err_msg=name)


def test_released_while_a_window_waits_for_its_temperature(index):
    plan = Awaiting(index.samples)
    stream = make_stream(index, plan)
    draws = []
    for batch in stream:
        draws += batch.draws.tolist()
        if len(draws) % BATCH == 0:
            with stream.released():
                pass
        if len(draws) % WINDOW == 0 and len(draws) < DRAWS:
            plan.complete(len(draws) // WINDOW - 1)
    assert draws == list(range(DRAWS))


def test_released_between_two_micro_batches_of_a_step_is_an_error(index):
    stream = make_stream(index, micro=8)
    batches = iter(stream)
    next(batches)
    with pytest.raises(RuntimeError, match="only between two steps"), stream.released():
        pass
    batches.close()


def test_released_while_a_read_hangs_is_an_error(index, monkeypatch):
    read, calls, hanging, gate = ShardStore.read, [], threading.Event(), threading.Event()

    def hang_later(store, sample_ids):
        calls.append(sample_ids)
        if len(calls) > 1:
            hanging.set()
            gate.wait(60)
        return read(store, sample_ids)

    monkeypatch.setattr(ShardStore, "read", hang_later)
    stream = make_stream(index, micro=BATCH, prefetch=1, stall_timeout=60)
    batches = iter(stream)
    next(batches)
    assert hanging.wait(30)
    monkeypatch.setattr(stream, "_stall_timeout", 0.2)  # only now: a busy machine may take longer for the first batch
    try:
        with pytest.raises(StallError, match=r"0\.2 seconds"), stream.released():
            pass
    finally:
        gate.set()
    batches.close()


def test_released_when_nothing_iterates_over_it(index, whole):
    stream = make_stream(index, micro=BATCH)
    with stream.released():
        pass
    assert next(iter(stream)).draws[0] == 0


def test_a_start_within_a_batch_is_refused(index):
    with pytest.raises(ValueError, match="multiple of the batch size"):
        make_stream(index, start=BATCH + 1)


def test_batches_follow_the_order_of_the_proto_plan(index):
    distances = np.linspace(0, 1, index.samples, dtype=np.float32)
    plan = Plan(
        CurriculumConfig(name="proto", window=WINDOW),
        samples=index.samples,
        distances=distances,
        draws=DRAWS,
        batch_size=BATCH,
        seed=SEED,
        hash64=hash64,
    )
    batches = list(make_stream(index, plan))
    ids = np.concatenate([batch.sample_ids for batch in batches])
    np.testing.assert_array_equal(ids, np.concatenate([plan.window(w).sample_ids for w in range(plan.windows)]))
    np.testing.assert_array_equal(torch.cat([batch.distances for batch in batches]).numpy(), distances[ids])
    assert [batch.window.number for batch in batches] == [int(batch.draws[0]) // WINDOW for batch in batches]
    assert {batch.window.digest for batch in batches} == {plan.window(w).digest for w in range(plan.windows)}


@pytest.fixture(scope="module")
def by_shard(index):
    """The plan of order "shard", in stretches of some 20 draws from two shards or more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_order, "STRETCH", 20)
        patch.setattr(shard_order, "SHARDS", 2)
        yield Plan(
            CurriculumConfig(name="proto", window=WINDOW, order="shard", share=0.5),
            samples=index.samples,
            distances=np.linspace(0, 1, index.samples, dtype=np.float32),
            draws=DRAWS,
            batch_size=BATCH,
            seed=SEED,
            hash64=hash64,
            shards=index.shard,
        )


@pytest.fixture(scope="module")
def whole_by_shard(index, by_shard):
    return collect(index, plan=by_shard, ordered=True)


def test_crops_follow_the_draw_number_in_shard_order(index, by_shard, whole_by_shard):
    draws, ids = np.arange(DRAWS), whole_by_shard["sample_ids"]
    windows = [by_shard.window(number) for number in range(by_shard.windows)]
    assert min(len(window.stretches) for window in windows) > 2
    np.testing.assert_array_equal(ids, np.concatenate([window.sample_ids for window in windows]))
    np.testing.assert_array_equal(whole_by_shard["draws"], draws)
    np.testing.assert_array_equal(whole_by_shard["keys"].view(np.uint64), hash64(SEED, draws, STREAM_MASK))
    boxes, flips = random_crops(SEED)(draws, index.width[ids], index.height[ids])
    np.testing.assert_array_equal(whole_by_shard["boxes"], boxes)
    np.testing.assert_array_equal(whole_by_shard["flips"], flips)


@pytest.mark.parametrize(
    "options",
    [
        {"world_size": 2, "local_size": 2},
        {"world_size": 3, "micro": 5, "prefetch": 1},
        {"prefetch": 100, "micro": 64},
        {"ordered": False},
    ],
    ids=str,
)
def test_nothing_depends_on_how_shard_order_is_read(index, by_shard, whole_by_shard, options):
    assert_same(collect(index, **{"plan": by_shard, "ordered": True} | options), whole_by_shard)


@pytest.mark.parametrize("start", [BATCH, 2 * BATCH, 5 * BATCH])
def test_shard_order_resumes_at_any_batch(index, by_shard, whole_by_shard, start):
    found = collect(index, plan=by_shard, ordered=True, start=start, world_size=2)
    assert_same(found, {name: column[start:] for name, column in whole_by_shard.items()})


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_in_order_reads_every_sample_once(labelled, world_size):
    index = ShardIndex.load(labelled[1])  # 40 samples: two batches and a part of one
    batches = []
    for rank in range(world_size):
        plan = InOrderPlan(np.arange(index.samples))
        batches += make_stream(index, plan, central_crops, batch=16, micro=7, rank=rank, world_size=world_size)
    batches.sort(key=lambda batch: batch.draws[0])
    assert all(len(batch.draws) for batch in batches)
    draws = np.concatenate([batch.draws for batch in batches])
    np.testing.assert_array_equal(draws, np.arange(40))
    np.testing.assert_array_equal(np.concatenate([batch.sample_ids for batch in batches]), draws)
    np.testing.assert_array_equal(np.concatenate([batch.labels for batch in batches]), index.label)
    assert sum(len(batch.images) for batch in batches) == 40
    assert all(torch.isnan(batch.distances).all() for batch in batches)


@pytest.mark.parametrize("field", ["image_size", "batch_size", "micro_batch_size", "decode_threads", "prefetch"])
def test_config_out_of_range(field):
    with pytest.raises(ValueError, match=f"data.{field} is 0"):
        DataConfig(**{field: 0})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("stall_timeout", value) for value in (0.0, -1.0, math.nan, math.inf)],
        *[("max_bad", value) for value in (-0.1, 1.1, math.nan)],
    ],
)
def test_fractions_and_seconds_out_of_range(field, value):
    with pytest.raises(ValueError, match=f"data.{field} is {value}; it must be"):
        DataConfig(**{field: value})
    assert (DataConfig().stall_timeout, DataConfig().max_bad) == (600, 0.001)
    assert DataConfig(max_bad=0.0).max_bad == 0
    assert DataConfig(max_bad=1.0).max_bad == 1


# How far ahead


@pytest.mark.parametrize(("prefetch", "micro", "ahead"), [(1, 8, 1), (3, 8, 3), (100, 8, 4), (100, 16, 2), (100, 5, 6)])
def test_never_too_far_ahead(index, prefetch, micro, ahead):
    # Half a window is 32 draws: `ahead` micro-batches of the largest size, if prefetch is more.
    spy, plan = Spy(), Windows(index.samples)
    stream = iter(make_stream(index, plan, spy, micro=micro, prefetch=prefetch))
    first = next(stream)
    for taken in range(1, 9):
        deadline = time.monotonic() + 30
        while len(spy.calls) < taken + ahead and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.02)  # long enough for one more, if it were made
        assert len(spy.calls) == taken + ahead
        assert sum(len(call[0]) for call in spy.calls[taken:]) <= WINDOW // 2
        last = next(stream)
    assert first.draws[0] == 0
    assert last.draws[0] > 0
    stream.close()


def test_the_next_window_is_planned_while_this_one_is_used(index):
    plan = Windows(index.samples)
    stream = iter(make_stream(index, plan, prefetch=1))
    for number in range(DRAWS // WINDOW):
        batch = next(stream)
        assert batch.window.number == number
        deadline = time.monotonic() + 30
        expected = list(range(min(number + 2, DRAWS // WINDOW)))
        while plan.asked != expected and time.monotonic() < deadline:
            time.sleep(0.001)
        assert plan.asked == expected
        for _ in range(WINDOW // 8 - 1):
            next(stream)
    assert list(stream) == []


# Errors


@pytest.mark.parametrize("number", [0, 2])
def test_a_plan_that_fails(index, number, threads_left):
    batches, error = read_until_error(make_stream(index, Windows(index.samples, fails_at=number)))
    assert "\n" not in str(error)
    assert threads_left() == []  # while the error is held
    assert isinstance(error, ValueError)
    assert "can be planned" in str(error)
    assert len(batches) == number * WINDOW // 8


def test_a_transform_that_fails(index, threads_left):
    def transform(draws, width, height):
        if draws[0] >= 40:
            raise DataError("no box")
        return central_crops(draws, width, height)

    batches, error = read_until_error(make_stream(index, transform=transform))
    assert "\n" not in str(error)
    assert threads_left() == []  # while the error is held
    assert str(error) == "no box"
    assert len(batches) == 5


# Windows that depend on training


class HoldsBack(ReferenceDecoder):
    """Yields a batch only after taking three more."""

    lookahead = 3

    def __call__(self, batches):
        taken = deque()
        for batch in batches:
            taken.append(batch)
            if len(taken) > self.lookahead:
                yield self.decode(taken.popleft())
        yield from map(self.decode, taken)


@pytest.mark.parametrize("decoder", [ReferenceDecoder, HoldsBack])
@pytest.mark.parametrize("prefetch", [1, 100])
def test_training_reaches_the_step_that_the_next_window_waits_for(index, decoder, prefetch):
    """Windows of 4 steps, one micro-batch each; the outcome of a step is known one step later."""
    plan, taken = Awaiting(index.samples, window_length=128, draws=640), []
    options = {"micro": BATCH, "prefetch": prefetch, "stall_timeout": 5.0}
    for batch in make_stream(index, plan, decoder=decoder(SIDE, 2), **options):
        taken.append(batch.draws[0])
        done = len(taken) - 1  # steps of which the outcome is known
        if done and done % 4 == 0 and done // 4 - 1 + 2 in plan.futures:
            time.sleep(0.02)  # let the waiting threads wait
            plan.complete(done // 4 - 1)
    assert taken == list(range(0, 640, BATCH))
    assert plan.asked == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("taken", [1, 9, 15])  # of 16 micro-batches before the window that will never be planned
def test_a_consumer_that_leaves_ends_the_wait_for_a_window(index, threads_left, taken):
    stream = iter(make_stream(index, Awaiting(index.samples)))
    for _ in range(taken):
        next(stream)
    time.sleep(0.05)  # for the threads to get as far as they can
    began = time.monotonic()
    stream.close()
    assert time.monotonic() - began < 30
    assert threads_left() == []


def test_an_error_is_raised_while_the_next_window_is_waited_for(index, threads_left):
    def transform(draws, width, height):
        if draws[0] >= 80:  # within window 1, while window 2 is waited for
            raise DataError("no box")
        return central_crops(draws, width, height)

    began = time.monotonic()
    batches, error = read_until_error(make_stream(index, Awaiting(index.samples), transform))
    assert time.monotonic() - began < 30
    assert threads_left() == []
    assert str(error) == "no box"
    assert len(batches) == 10


def test_a_stream_can_be_read_again_after_it_was_left_waiting(index):
    plan = Awaiting(index.samples)
    stream = make_stream(index, plan)
    for _, _ in zip(stream, range(12), strict=False):
        pass
    for number in range(3):
        plan.complete(number)
    assert len(list(stream)) == DRAWS // 8


def test_no_thread_survives_a_consumer_that_leaves_early(index, threads_left):
    for taken in (0, 1, 5):
        for batch in make_stream(index):
            if batch.draws[0] >= 8 * taken:
                break
        assert threads_left() == []
    stream = iter(make_stream(index))
    next(stream)
    assert threads_left()  # the check can fail
    del stream
    assert threads_left() == []
    with pytest.raises(RuntimeError, match="consumer"):
        consume_and_fail(index)
    assert threads_left() == []


def consume_and_fail(index):
    for _ in make_stream(index):
        raise RuntimeError("consumer")


def test_no_thread_survives_the_end(index, threads_left):
    assert math.ceil(DRAWS / 8) == sum(1 for _ in make_stream(index))
    assert threads_left() == []


@pytest.mark.parametrize("world_size", [1, 3])
def test_the_side_follows_the_step_and_the_boxes_stay(index, whole, world_size):
    def side_at(draw):
        assert draw % BATCH == 0
        return 8 if draw < DRAWS // 2 // BATCH * BATCH else SIDE

    found = {"draws": [], "boxes": []}
    for rank in range(world_size):
        spy = Spy()
        start = BATCH if world_size > 1 else 0  # as after a resume
        options = {"rank": rank, "world_size": world_size, "start": start}
        for batch in make_stream(index, transform=spy, side_at=side_at, **options):
            side = side_at(batch.position - BATCH)
            assert batch.images.shape == (len(batch.draws), 3, side, side)
            if side == SIDE:
                np.testing.assert_array_equal(batch.images.numpy(), whole["images"][batch.draws])
            found["draws"].append(batch.draws)
        found["boxes"] += [call[1] for call in spy.calls]
    draws = np.concatenate(found["draws"])
    np.testing.assert_array_equal(np.concatenate(found["boxes"]), whole["boxes"][draws])
    assert {8, SIDE} == {side_at(int(draw) // BATCH * BATCH) for draw in draws}
