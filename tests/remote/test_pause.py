"""Servers that ask to wait are not asked again before, by any thread or process of the machine."""

import multiprocessing
import os
import threading
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import numpy as np
import pytest

from mimcl.pipeline.cache_dir import cache_dir
from mimcl.pipeline.files import DataError
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.open_store import open_store
from mimcl.pipeline.remote import pause
from mimcl.pipeline.remote.pause import Pause, Paused, asked_pause_s
from mimcl.pipeline.store import ShardStore

pytestmark = pytest.mark.slow


class Answer:
    def __init__(self, status, headers):
        self.status_code, self.headers = status, headers


class Refused(Exception):
    def __init__(self, status, headers):
        super().__init__(status)
        self.response = Answer(status, headers)


@pytest.mark.parametrize(
    ("status", "headers", "seconds"),
    [
        (429, {}, None),
        (500, {"Retry-After": "9"}, None),
        (429, {"Retry-After": "9"}, 9),
        (503, {"retry-after": " 120 "}, 120),
        (429, {"Retry-After": "0"}, None),  # a usual retry
        (429, {"Retry-After": "soon"}, None),
        (429, {"Retry-After": "-5"}, None),
        (429, {"RateLimit": '"resolvers";r=0;t=123'}, 124),
        (429, {"ratelimit": '"api"; r=0; t=0', "Retry-After": "7"}, 1),
        (429, {"RateLimit": '"api";r=12;t=50'}, None),  # sent with every answer
        (429, {"RateLimit": '"api";r=12;t=50', "Retry-After": "7"}, 7),
        (503, {"RateLimit": '"api";r=0;t=50'}, None),
    ],
)
def test_what_a_server_asks_for(status, headers, seconds):
    assert asked_pause_s(Refused(status, headers)) == seconds


def test_a_date_to_wait_for():
    at = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    assert asked_pause_s(Refused(503, {"Retry-After": at})) == pytest.approx(89, abs=2)
    assert asked_pause_s(Refused(503, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"})) is None


def left_elsewhere(server, queue):
    queue.put(Pause(server).left_s())


def test_a_pause_holds_for_other_processes_and_for_that_server_only():
    one = Pause("https://one")
    assert one.left_s() == 0
    one.extend(50)
    one.extend(20)  # the longer one counts
    assert 45 < one.left_s() <= 50
    with pytest.raises(Paused):
        Pause("https://one").require_over()
    Pause("https://other").require_over()
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=left_elsewhere, args=("https://one", queue))
    process.start()
    assert 0 < queue.get(timeout=60) <= 50
    process.join()


def test_a_pause_of_years_is_a_wrong_clock(tmp_path):
    one = Pause("https://one")
    one.extend(50)
    (path,) = (cache_dir() / "pauses").iterdir()
    os.utime(path, (2e9, 2e9))
    pause._until.clear()
    assert one.left_s() == 0


def test_without_a_cache_the_threads_of_a_process_wait(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MIMCL_CACHE", str(tmp_path / "file"))
    Pause("https://one").extend(50)
    assert 0 < Pause("https://one").left_s() <= 50


def test_it_is_logged_once(caplog):
    for _ in range(3):
        Pause("https://once").extend(50)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == "https://once asks to wait 50 s before the next request; waiting"


@pytest.mark.parametrize("status", [429, 503])
def test_a_pause_is_no_failure(server, shards, status):
    local = ShardStore(ShardIndex.load(shards))
    rows = np.arange(local._index.samples)
    server.inject(dict(path=r"\.tar", what="status", value=status, headers={"Retry-After": "1"}, times=12))
    found = open_store(ShardIndex.load(server.root)).read(rows)  # refused more often than there are retries
    assert [data.tobytes() for data in found] == [data.tobytes() for data in local.read(rows)]


def test_all_threads_wait_together(server):
    index = ShardIndex.load(server.root)
    rows, stores = np.arange(index.samples), [open_store(index) for _ in range(3)]
    for store in stores:
        store.read(np.array([0, index.samples - 1]))  # so that only GETs follow
    server.inject(dict(path=r"\.tar", what="status", value=429, headers={"Retry-After": "900"}))
    for store in stores:  # prefetching and reading at once
        store.prefetch(store.plan_reads(rows))
        threading.Thread(target=store.read, args=(rows,), daemon=True).start()
    before: list[dict] = []
    while not before or len(before) < len(server.requests()):
        before = server.requests()
        time.sleep(1)
    asked = Counter((line["path"], line["range"], line["method"]) for line in before)
    assert max(asked.values()) <= 2 * len(stores)  # once for prefetching, once for reading: none was tried again


def test_longer_than_half_an_hour_is_an_error_at_once(server):
    index = ShardIndex.load(server.root)
    server.inject(dict(path=r"\.tar", what="status", value=429, headers={"Retry-After": "4000"}))
    with pytest.raises(DataError, match=r"train-000000.tar: the server asks to wait for 4,000 s, more than 1,800;"):
        open_store(index).read(np.array([0]))
    assert len(server.requests()) <= 2
