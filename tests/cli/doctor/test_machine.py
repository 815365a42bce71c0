"""What the machine has, as this process may use it."""

import os
import resource

import numpy as np
from helpers.images import write_flat

from mimcl.cli.doctor import machine
from mimcl.cli.doctor.machine import disk, limits
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.shards import PackConfig, pack
from mimcl.pipeline.sources.folder import image_folder


def by_name(findings):
    return {finding.name: finding for finding in findings}


def test_this_machine():
    found = by_name(machine.machine())
    assert found.keys() == {"cores", "load", "memory", "shared memory", "open files", "address space"}
    assert found["cores"].numbers["there"] == os.sysconf("SC_NPROCESSORS_ONLN")
    assert found["memory"].numbers["total"] == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert found["open files"].numbers["limit"] == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert not [finding for finding in found.values() if finding.mark == "broken"]


def test_fewer_cores_than_the_machine_has(monkeypatch):
    monkeypatch.setattr(machine, "usable_cores", lambda: 0.5)
    (found, *_) = machine.cores()
    assert found.text.startswith(f"0.5 of {os.sysconf('SC_NPROCESSORS_ONLN')} usable")
    assert found.mark == "warning"


def test_a_limit_on_memory(monkeypatch):
    monkeypatch.setattr(machine, "memory_limit", lambda: 2_000_000_000)
    (found,) = machine.memory()
    assert found.numbers["limit"] == 2_000_000_000
    assert "this control group may use 2.0 GB" in found.text
    assert found.mark == "warning"


def test_limits_that_are_too_low(monkeypatch):
    low = {resource.RLIMIT_NOFILE: (256, 512), resource.RLIMIT_AS: (8 << 30, 8 << 30)}
    monkeypatch.setattr(resource, "getrlimit", low.get)
    files, space = limits()
    assert (files.mark, space.mark) == ("warning", "warning")
    assert "ulimit -n 1024" in files.text
    assert "ulimit -v unlimited" in space.text


def test_the_disk_is_read_within_seconds_and_reads_every_image(tmp_path, monkeypatch):
    write_flat(tmp_path / "images", 11)
    pack(image_folder(tmp_path / "images"), tmp_path / "shards", PackConfig(), on_progress=lambda count: None)
    index, read, real = ShardIndex.load(tmp_path / "shards"), [], os.pread
    monkeypatch.setattr(os, "pread", lambda *what: (read.append(what[1:]), real(*what))[1])
    found = by_name(disk(index))
    assert {(count, start) for count, start in read} >= set(zip(index.nbytes, index.offset, strict=True))
    assert found["disk, at random"].numbers["bytes_per_second"] > 0
    assert np.isfinite(found["disk, in order"].numbers["bytes_per_second"])
