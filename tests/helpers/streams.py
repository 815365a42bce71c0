"""Streams over small data sets, a plan of hashed samples, and the batches of streams as arrays."""

from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
import pytest

from mimcl.pipeline.augment import hash64, random_crops
from mimcl.pipeline.batch_shares import BatchShares
from mimcl.pipeline.decode import ReferenceDecoder
from mimcl.pipeline.stream import ReadOptions, Stream

SEED, BATCH, WINDOW, DRAWS, SIDE = 11, 32, 64, 256, 24


@dataclass(frozen=True)
class Window:
    number: int
    first_draw: int
    sample_ids: np.ndarray
    distances: np.ndarray
    stretches: np.ndarray
    temperature: float
    effective_fraction: float = 0.5
    phase: str = "curriculum"


class Windows:
    """A plan of hashed samples that records the windows and (draw, retry) requested."""

    retries = 16

    def __init__(self, samples, draws=DRAWS, window_length=WINDOW, fails_at=None):
        self.samples, self.draws, self.window_length, self.fails_at = samples, draws, window_length, fails_at
        self.asked, self.retried = [], []

    def when_ready(self, number):
        return None

    def window(self, number):
        self.asked.append(number)
        if number == self.fails_at:
            raise ValueError("no such window can be planned")
        first = number * self.window_length
        draws = np.arange(first, min(first + self.window_length, self.draws))
        ids = (hash64(99, draws, 16) % np.uint64(self.samples)).astype(np.int64)
        return Window(number, first, ids, self.distances_of(ids), np.array([0, len(ids)]), 0.1 * (number + 1))

    def substitutes(self, window_number, draws, retry):
        assert 0 <= retry < self.retries
        assert (draws // self.window_length == window_number).all()
        self.retried += [(int(draw), retry) for draw in draws]
        ids = (hash64(99, draws, 32 + retry) % np.uint64(self.samples)).astype(np.int64)
        return ids, self.distances_of(ids)

    def distances_of(self, ids):
        return (ids / self.samples).astype(np.float32)


class Awaiting(Windows):
    """A plan in which window n >= 2 can be planned only once window n - 2 is `complete`."""

    def __init__(self, samples, **options):
        super().__init__(samples, **options)
        self.futures = {number: Future() for number in range(2, self.draws // self.window_length + 1)}

    def when_ready(self, number):
        return self.futures.get(number)

    def complete(self, number):
        self.futures[number + 2].set_result(None)

    def window(self, number):
        assert number < 2 or self.futures[number].done()
        return super().window(number)


class Spy:
    """The training transform; records its arguments and results."""

    def __init__(self, transform=None):
        self.transform, self.calls = transform or random_crops(SEED), []

    def __call__(self, draws, width, height):
        boxes, flips = self.transform(draws, width, height)
        self.calls.append((draws, boxes, flips, width, height))
        return boxes, flips


SHARES = ("rank", "world_size", "local_size", "group_size")
READING = ("ordered", "stall_timeout")


def make_stream(
    index, plan=None, transform=None, *, decoder=None, threads=2, micro=8, prefetch=4, batch=BATCH, **options
):
    shares = {name: options.pop(name) for name in SHARES if name in options}
    reading = {name: options.pop(name) for name in READING if name in options}
    return Stream(
        plan or Windows(index.samples),
        index,
        decoder or ReferenceDecoder(SIDE, threads),
        transform or random_crops(SEED),
        BatchShares(batch, micro, **shares),
        ReadOptions(prefetch, **reading),
        seed=SEED,
        **options,
    )


COLUMNS = ["images", "draws", "keys", "sample_ids", "labels", "distances"]


def collect(index, world_size=1, **options) -> dict[str, np.ndarray]:
    """Return all columns of all ranks in order of the draws, with the crop boxes and flips."""
    rows = {name: [] for name in [*COLUMNS, "temperature", "position", "boxes", "flips"]}
    for rank in range(world_size):
        spy = Spy()
        for batch in make_stream(index, transform=spy, rank=rank, world_size=world_size, **options):
            for name in COLUMNS:
                rows[name].append(np.asarray(getattr(batch, name)))
            rows["temperature"].append(np.full(len(batch.draws), batch.window.temperature))
            rows["position"].append(np.full(len(batch.draws), batch.position))
        rows["boxes"] += [call[1] for call in spy.calls]
        rows["flips"] += [call[2] for call in spy.calls]
        assert [call[0].tolist() for call in spy.calls] == [d.tolist() for d in rows["draws"][-len(spy.calls) :]]
    joined = {name: np.concatenate(parts) for name, parts in rows.items()}
    order = np.argsort(joined["draws"], kind="stable")
    return {name: column[order] for name, column in joined.items()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def read_until_error(stream) -> tuple[list, Exception]:
    batches = []
    try:
        for batch in stream:
            batches.append(batch)
    except Exception as error:
        return batches, error
    pytest.fail("no error came out")
