"""What the machine has, as this process may use it."""

import os
import resource
import shutil
from types import SimpleNamespace

import numpy as np

from mimcl.cli.doctor import machine
from mimcl.pipeline import kept_pixels


def by_name(findings):
    return {finding.name: finding for finding in findings}


def test_this_machine(monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (1000.0, 1000.0, 1000.0))
    found = by_name(machine.machine())
    assert found.keys() == {"cores", "load", "memory", "shared memory", "open files"}
    assert found["cores"].numbers["there"] == os.sysconf("SC_NPROCESSORS_ONLN")
    assert found["load"].mark == "warning"
    assert found["memory"].numbers["total"] == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert found["open files"].numbers["limit"] == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert not [finding for finding in found.values() if finding.mark == "broken"]


def test_fewer_cores_than_the_machine_has(monkeypatch):
    monkeypatch.setattr(machine, "usable_cores", lambda: 0.5)
    (found, *_) = machine.cores()
    assert found.text.startswith(f"0.5 of {os.sysconf('SC_NPROCESSORS_ONLN')}")
    assert found.mark == "warning"


def test_a_limit_on_memory(monkeypatch):
    monkeypatch.setattr(machine, "memory_limit", lambda: 2_000_000_000)
    (found,) = machine.memory()
    assert found.numbers["limit"] == 2_000_000_000
    assert "2.0 GB" in found.text
    assert found.mark == "warning"


def test_too_few_open_files(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", {resource.RLIMIT_NOFILE: (256, 512)}.get)
    (found,) = machine.open_files()
    assert found.mark == "warning"
    assert "ulimit -n 1024" in found.text


def test_too_little_space(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=64 << 20, free=32 << 20))
    (shared,), (disk,) = machine.shared_memory(), machine.disk(SimpleNamespace(root=tmp_path))
    assert "--shm-size" in shared.text
    assert shared.mark == disk.mark == "warning"
    monkeypatch.setenv("MIMCL_CACHE", str(tmp_path / "cache"))
    (cache,) = machine.cache()
    assert "MIMCL_CACHE_GB" in cache.text
    assert cache.mark == "warning"


def test_the_memory_of_decoded_images_is_stated_and_whether_it_fits(monkeypatch):
    sizes = {name: np.array([40_000, 100], np.int32) for name in ("width", "height")}
    index = SimpleNamespace(**sizes, samples=2)
    (found,) = machine.decoded(index)
    assert found.numbers == {"bytes": 3 * (40_000**2 + 100**2)}
    for free, fits in (
        (7e9, "fits into memory with --set data.keep_decoded=true"),
        (5e9, "too large to keep in memory"),
    ):
        monkeypatch.setattr(kept_pixels, "free_memory", lambda free=free: int(free))
        (found,) = machine.decoded(index)
        assert found.text == f"4.8 GB, {fits}"


def test_without_shared_memory_as_a_folder_there_is_no_finding(monkeypatch):
    monkeypatch.setattr(os.path, "isdir", lambda path: False)
    assert list(machine.shared_memory()) == []


def test_shards_stay_cached_where_they_cannot_be_forgotten(monkeypatch):
    """As on macOS; nothing is opened."""
    monkeypatch.setattr(machine, "CAN_FORGET", False)
    machine.forget_shards(SimpleNamespace(url=None, shards=[{"name": "missing.tar"}]))
