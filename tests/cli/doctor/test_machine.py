"""What the machine has, as this process may use it."""

import os
import resource

import numpy as np
import pytest
from images import write_flat

from mimcl.cli.doctor import machine
from mimcl.cli.doctor.machine import disk, limits, usable_cores
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.shards import PackConfig, pack
from mimcl.pipeline.sources.folder import image_folder


def by_name(findings):
    return {finding.name: finding for finding in findings}


def test_this_machine():
    found = by_name(machine.machine())
    assert found.keys() == {"cores", "load", "memory", "shared memory", "open files", "address space"}
    assert found["cores"].numbers["there"] == os.cpu_count()
    assert found["memory"].numbers["total"] == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert found["open files"].numbers["limit"] == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert not [finding for finding in found.values() if finding.mark == "broken"]


def test_fewer_cores_by_affinity_and_by_quota(monkeypatch, tmp_path):
    allowed = os.sched_getaffinity(0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: allowed)
    monkeypatch.setattr(machine, "_GROUPS", tmp_path)
    assert usable_cores() == len(allowed)
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert usable_cores() == 0.5
    (found, *_) = machine.cores()
    assert found.text.startswith(f"0.5 of {os.cpu_count()} usable")
    assert found.mark == "warning"
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert usable_cores() == len(allowed)
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("75000\n")
    assert usable_cores() == min(0.75, len(allowed))


@pytest.mark.parametrize("name", ["memory.max", "memory/memory.limit_in_bytes"])
def test_a_limit_on_memory(monkeypatch, tmp_path, name):
    monkeypatch.setattr(machine, "_GROUPS", tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("2000000000\n")
    (found,) = machine.memory()
    assert found.numbers["limit"] == 2_000_000_000
    assert "this control group may use 2.0 GB" in found.text
    assert found.mark == "warning"
    (tmp_path / name).write_text("9223372036854771712\n" if "limit" in name else "max\n")
    (found,) = machine.memory()
    assert found.numbers["limit"] is None


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
