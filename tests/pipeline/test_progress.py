"""A stream that is stuck names the cause in time, and does not wait for it."""

import fcntl
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.streams import SIDE, Windows, make_stream

from mimcl.pipeline.decode import ReferenceDecoder
from mimcl.pipeline.files import DataError
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.progress import StallError

pytestmark = pytest.mark.slow  # starts processes and waits for time-outs

TIMEOUT = 0.4  # seconds


@pytest.fixture(scope="module")
def index(labelled):
    return ShardIndex.load(labelled[1])


@pytest.fixture
def gate():
    """An event that blocks its waiters until the test is over, and then lets all threads end."""
    before, gate = set(threading.enumerate()), threading.Event()
    yield gate
    gate.set()
    for thread in set(threading.enumerate()) - before:
        if not thread.name.startswith("decode"):
            thread.join(10)
            assert not thread.is_alive()


def stalled(stream, activity: str, batches: int) -> None:
    """Check that after so many batches the stream reports, TIMEOUT later, that it is stuck at `activity`."""
    run = iter(stream)
    for _ in range(batches):
        next(run)
    start = time.monotonic()
    with pytest.raises(StallError) as error:
        next(run)
    assert TIMEOUT <= time.monotonic() - start < TIMEOUT + 30
    assert f"{TIMEOUT} seconds while {activity};" in str(error.value)
    assert "data.stall_timeout" in str(error.value)
    assert "\n" not in str(error.value)
    assert isinstance(error.value, DataError)
    assert any(thread.name == "stream" and thread.daemon for thread in threading.enumerate())  # still stuck


@pytest.mark.parametrize("number", [0, 2])
def test_a_plan_that_blocks(index, gate, number):
    class Blocks(Windows):
        def window(self, asked):
            if asked == number:
                gate.wait()
            return super().window(asked)

    stream = make_stream(index, Blocks(index.samples), stall_timeout=TIMEOUT)
    stalled(stream, f"planning window {number}", batches=8 * number)


@pytest.mark.parametrize("place", [0, 3])
def test_a_decoder_that_blocks(index, gate, place):
    class Blocks(ReferenceDecoder):
        def __call__(self, batches):
            for number, decoded in enumerate(super().__call__(batches)):
                if number == place:
                    gate.wait()
                yield decoded

    stream = make_stream(index, decoder=Blocks(SIDE, 2), stall_timeout=TIMEOUT)
    stalled(stream, f"decoding draws {8 * place} to {8 * place + 7}", batches=place)


def test_a_decoder_that_blocks_after_taking_batches_ahead(index, gate):
    class Blocks(ReferenceDecoder):
        lookahead = 2

        def __call__(self, batches):
            taken = [batch for batch, _ in zip(batches, range(3), strict=False)]
            yield self.decode(taken[0])
            gate.wait()

    stalled(make_stream(index, decoder=Blocks(SIDE, 2), stall_timeout=TIMEOUT), "decoding draws 8 to 15", batches=1)


def test_a_decoder_that_never_starts(index, gate):
    class Blocks(ReferenceDecoder):
        def __call__(self, batches):
            gate.wait()
            yield from super().__call__(batches)

    stalled(make_stream(index, decoder=Blocks(SIDE, 2), stall_timeout=TIMEOUT), "starting the decoder", batches=0)


def test_a_shard_that_blocks(labelled, tmp_path, gate):
    """Another program holds a lease on a shard: the system makes whoever opens it wait."""
    shutil.copytree(labelled[1], tmp_path / "copy")
    index = ShardIndex.load(tmp_path / "copy")
    path = tmp_path / "copy" / index.shards[1]["name"]
    plan = Windows(index.samples)
    ids = plan.window(0).sample_ids
    first = int(np.flatnonzero(index.shard[ids] == 1)[0])
    handler = signal.signal(signal.SIGIO, signal.SIG_IGN)  # the signal that asks the holder to release it
    with open(path, "r+b") as holder:
        try:
            fcntl.fcntl(holder, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        except OSError:
            pytest.skip("this file system has no leases")
        try:
            stream = make_stream(index, plan, stall_timeout=TIMEOUT)
            stalled(stream, f"reading sample {index.key(ids[first])} of {path.name}", batches=first // 8)
        finally:
            fcntl.fcntl(holder, fcntl.F_SETLEASE, fcntl.F_UNLCK)
            gate.set()
    signal.signal(signal.SIGIO, handler)


def test_the_consumers_own_time_does_not_count(index):
    for number, _ in enumerate(make_stream(index, stall_timeout=TIMEOUT)):
        if number in (0, 5):
            time.sleep(2 * TIMEOUT)
    assert number == 31


@pytest.mark.parametrize("stuck", ["window", "decode", "pread"])
def test_a_program_with_a_stalled_stream_ends(labelled, stuck):
    code = f"""
import os, sys, threading
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from pathlib import Path
from helpers.streams import SIDE, Windows, make_stream
from mimcl.pipeline.decode import ReferenceDecoder
from mimcl.pipeline.index import ShardIndex

index = ShardIndex.load(Path({str(labelled[1])!r}))
plan, decoder = Windows(index.samples), ReferenceDecoder(SIDE, 2)
real = os.pread


def not_now(*what):
    raise BlockingIOError  # the page cache holds nothing


os.preadv = not_now


def hang(*what):
    if {stuck!r} != "pread" or threading.current_thread().name == "read":  # one of the store's threads
        threading.Event().wait()
    return real(*what)


setattr({{"window": plan, "decode": decoder, "pread": os}}[{stuck!r}], {stuck!r}, hang)
for batch in make_stream(index, plan, decoder=decoder, stall_timeout=0.2):
    pass
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert re.search("StallError: .* 0.2 seconds", done.stderr.splitlines()[-1])
