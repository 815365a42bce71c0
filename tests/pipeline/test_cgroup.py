"""Limits of control groups, in file trees like those of kernels, containers and batch systems."""

import os

import pytest

from mimcl.pipeline import cgroup

STAT = "anon 660\nactive_file 10\ninactive_file 20\nslab 10\n"


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Write files below the root of the control groups, and set the group of this process."""
    monkeypatch.setattr(cgroup, "_ROOT", tmp_path / "groups")
    monkeypatch.setattr(cgroup, "_MEMBERSHIP", tmp_path / "membership")

    def write(membership: str, **files: str) -> None:
        (tmp_path / "membership").write_text(membership)
        for name, text in files.items():
            file = tmp_path / "groups" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text + "\n")

    return write


def test_without_control_groups_there_is_no_limit(tree):
    assert (cgroup.cpu_quota(), cgroup.memory_limit()) == (None, None)


def test_version_2_no_limit(tree):
    tree("0::/user.slice\n", **{"user.slice/cpu.max": "max 100000", "user.slice/memory.max": "max"})
    assert (cgroup.cpu_quota(), cgroup.memory_limit()) == (None, None)


@pytest.mark.parametrize("limited", ["", "jobs/", "jobs/17/"])
def test_version_2_a_limit_of_any_group_around_this_process(tree, limited):
    unlimited = {f"{folder}cpu.max": "max 100000" for folder in ("jobs/", "jobs/17/")}
    tree("0::/jobs/17\n", **unlimited | {f"{limited}cpu.max": "250000 100000", f"{limited}memory.max": "2000000000"})
    assert cgroup.cpu_quota() == 2.5
    assert cgroup.memory_limit() == 2_000_000_000


def test_the_tightest_of_several_limits_counts(tree):
    tree("0::/a/b\n", **{"cpu.max": "800000 100000", "a/cpu.max": "150000 100000", "a/b/cpu.max": "400000 100000"})
    assert cgroup.cpu_quota() == 1.5


def test_a_container_that_shows_its_own_group_as_the_root(tree):
    tree("0::/docker/4711\n", **{"cpu.max": "50000 100000", "memory.max": "1000"})
    assert (cgroup.cpu_quota(), cgroup.memory_limit()) == (0.5, 1000)


def test_version_1(tree):
    membership = "5:cpu,cpuacct:/slurm/job_7\n4:memory:/slurm/job_7\n3:cpuset:/\n"
    quota = {"cpu/slurm/job_7/cpu.cfs_quota_us": "300000", "cpu/slurm/job_7/cpu.cfs_period_us": "100000"}
    around = {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}
    memory = {"memory/slurm/job_7/memory.limit_in_bytes": "5000", "memory/memory.limit_in_bytes": f"{2**63 - 4096}"}
    tree(membership, **quota, **around, **memory)
    assert (cgroup.cpu_quota(), cgroup.memory_limit()) == (3.0, 5000)


def test_version_1_no_limit(tree):
    tree("1:cpu:/\n4:memory:/\n", **{"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"})
    tree("1:cpu:/\n4:memory:/\n", **{"memory/memory.limit_in_bytes": "9223372036854771712"})
    assert (cgroup.cpu_quota(), cgroup.memory_limit()) == (None, None)


def test_limits_of_other_controllers_do_not_count(tree):
    tree("1:cpuset:/job\n0::/\n", **{"cpuset/job/cpu.cfs_quota_us": "100", "cpuset/job/cpu.cfs_period_us": "100"})
    assert cgroup.cpu_quota() is None


@pytest.mark.parametrize(
    ("membership", "files", "left"),
    [
        ("0::/a\n", {"a/memory.max": "max", "a/memory.current": "70"}, 4096 * 1024),
        ("0::/a\n", {"a/memory.max": "1000", "a/memory.current": "700"}, 300),
        ("0::/a\n", {"a/memory.max": "1000", "a/memory.current": "700", "a/memory.stat": STAT}, 330),
        ("0::/a\n", {"a/memory.max": "1000", "a/memory.current": "1200"}, 0),
        ("0::/a/b\n", {"a/memory.max": "1000", "a/memory.current": "900", "a/b/memory.max": "800"}, 100),
        ("4:memory:/j\n", {"memory/j/memory.limit_in_bytes": "1000", "memory/j/memory.usage_in_bytes": "400"}, 600),
        (
            "4:memory:/j\n",
            {
                "memory/j/memory.limit_in_bytes": "1000",
                "memory/j/memory.usage_in_bytes": "400",
                "memory/j/memory.stat": STAT + "total_active_file 50\n",
            },
            670,
        ),
        ("0::/a\n", {"a/memory.max": "9999999999"}, 4096 * 1024),
    ],
)
def test_free_memory_is_what_the_machine_and_all_limits_leave(tree, tmp_path, monkeypatch, membership, files, left):
    (tmp_path / "meminfo").write_text("MemTotal:  8192 kB\nMemFree:  10 kB\nMemAvailable:  4096 kB\n")
    monkeypatch.setattr(cgroup, "_MEMINFO", tmp_path / "meminfo")
    tree(membership, **files)
    assert cgroup.free_memory() == left


def test_free_memory_of_this_machine():
    assert 10e6 < cgroup.free_memory() < 1e14


def test_where_nothing_says_what_is_free_half_of_the_memory_is(tree, tmp_path, monkeypatch):
    """As on macOS."""
    monkeypatch.setattr(cgroup, "_MEMINFO", tmp_path / "missing")
    tree("")
    assert cgroup.free_memory() == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
