"""A folder's lock has one holder at a time, and none on a file system without locks."""

import fcntl
import os
import subprocess
import sys
import threading
import time

import pytest

from mimcl.pipeline.folder_lock import FolderLock


def test_a_held_lock_is_refused_after_the_timeout_and_granted_once_released(tmp_path):
    with FolderLock(tmp_path) as lock, FolderLock(tmp_path) as other:
        assert lock.acquire()
        assert lock.held
        began = time.monotonic()
        assert not other.acquire(timeout_s=0)
        assert not other.acquire(timeout_s=0.2)
        assert time.monotonic() - began >= 0.2
        assert not other.held
    with FolderLock(tmp_path) as lock:
        assert lock.acquire(timeout_s=0)


@pytest.mark.parametrize("timeout_s", [None, 30])
def test_a_waiting_holder_gets_the_lock(tmp_path, timeout_s):
    got = []

    def wait():
        with FolderLock(tmp_path) as lock:
            got.append(lock.acquire(timeout_s))

    with FolderLock(tmp_path) as lock:
        lock.acquire()
        waiting = threading.Thread(target=wait, daemon=True)
        waiting.start()
        time.sleep(0.1)
        assert not got
    waiting.join(30)
    assert got == [True]


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    program = (
        "import sys, time; from pathlib import Path; from mimcl.pipeline.folder_lock import FolderLock\n"
        "with FolderLock(Path(sys.argv[1])) as lock: print(lock.acquire(), flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", program, tmp_path], stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"True\n"
        with FolderLock(tmp_path) as lock:
            assert not lock.acquire(timeout_s=0)
            holder.kill()
            assert lock.acquire(timeout_s=30)
    finally:
        holder.kill()
        holder.communicate()


@pytest.mark.parametrize("timeout_s", [None, 0, 5])
def test_without_locks_it_is_acquired_but_not_held(tmp_path, monkeypatch, timeout_s):
    def refuse(descriptor, operation):
        raise OSError(38, os.strerror(38))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with FolderLock(tmp_path) as lock:
        assert lock.acquire(timeout_s)
        assert not lock.held


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        FolderLock(tmp_path / "missing")
