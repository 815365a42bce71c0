"""The cores that a process uses: affinity, quota, and its part of those shared with other processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mimcl.pipeline import cores

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def machine(monkeypatch):
    """A machine with these cores in the masks of this process and of its launcher, and this quota."""

    def of(own: int, launcher: int | None = None, quota: float | None = None) -> None:
        masks = {0: own, os.getppid(): own if launcher is None else launcher}
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(masks[pid])))
        monkeypatch.setattr(cores, "cpu_quota", lambda: quota)

    return of


@pytest.mark.parametrize(("own", "quota", "usable"), [(16, None, 16), (16, 2.5, 2.5), (2, 8.0, 2), (1, 0.5, 0.5)])
def test_usable_cores(machine, own, quota, usable):
    machine(own, quota=quota)
    assert cores.usable_cores() == usable


@pytest.mark.parametrize(
    ("own", "launcher", "quota", "local_size", "workers"),
    [
        (208, 208, None, 8, 26),  # torchrun on a whole machine
        (26, 208, None, 8, 26),  # each process bound to its own cores, as by srun
        (104, 208, None, 8, 26),  # bound to half of the machine, which four processes share
        (4, 4, None, 2, 2),  # taskset around torchrun
        (208, 208, 32.0, 8, 4),  # a container's quota, for all processes together
        (2, 2, None, 8, 1),  # more processes than cores
        (16, 2, None, 1, 16),  # a single process does not share, whatever its launcher may use
        (1, 1, 0.25, 1, 1),
    ],
)
def test_workers_of_each_process(machine, own, launcher, quota, local_size, workers):
    machine(own, launcher, quota)
    assert cores.worker_count(local_size) == workers


@pytest.mark.parametrize(("own", "threads"), [(1, 1), (2, 2), (4, 4), (5, 3), (6, 4), (16, 14)])
def test_two_of_more_than_four_cores_are_reserved(machine, own, threads):
    machine(own)
    assert cores.decode_threads() == threads


def test_configured_threads_are_shared_by_the_processes_of_a_machine(machine):
    machine(16)
    assert [cores.decode_threads(size, 12) for size in (1, 2, 5, 16)] == [12, 6, 2, 1]


@pytest.mark.parametrize(("by_torchrun", "workers"), [(False, 26), (True, 3)])
def test_shells_between_slurm_and_a_task(machine, monkeypatch, by_torchrun, workers):
    shell, daemon = os.getppid(), 2**22 + 7  # above any process id
    masks = {0: 26, shell: 26, daemon: 208}
    machine(26)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(masks[pid])))
    monkeypatch.setattr(cores, "_parent", {shell: daemon}.get)
    monkeypatch.setenv("SLURM_PROCID", "3")
    if by_torchrun:  # its processes share what the task has
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert cores.worker_count(8) == workers


def test_the_parent_of_a_process():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert cores._parent(child.pid) == os.getpid()
    child.communicate(b"\n")


def test_a_launcher_that_has_ended(machine, monkeypatch):
    machine(8)

    def affinity(pid):
        if pid:
            raise ProcessLookupError
        return set(range(8))

    monkeypatch.setattr(os, "sched_getaffinity", affinity)
    assert cores.worker_count(2) == 4


def test_without_affinity_masks_all_cores_are_usable(monkeypatch):
    """As on macOS."""
    monkeypatch.setattr(cores, "cpu_quota", lambda: None)
    monkeypatch.delattr(os, "sched_getaffinity")
    there = os.sysconf("SC_NPROCESSORS_ONLN")
    assert cores.usable_cores() == cores.worker_count() == there
    assert cores.worker_count(there) == 1


def test_a_real_process_bound_to_one_core():
    code = "import os; os.sched_setaffinity(0, {max(os.sched_getaffinity(0))}); "
    code += "from mimcl.pipeline.cores import usable_cores, worker_count; print(usable_cores() <= 1, worker_count(1))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["True", "1"]


def test_no_package_counts_the_machines_cores_instead():
    files = [file for folder in ("pipeline", "curriculum", "model", "cli") for file in (ROOT / folder).rglob("*.py")]
    assert files
    assert [file for file in files if "cpu_count" in file.read_text()] == []


@pytest.mark.parametrize(
    ("own", "launcher", "quota", "local_size", "hardware_threads", "threads"),
    [
        (2, 2, None, 1, 1, 2),
        (16, 16, None, 1, 2, 8),  # one a physical core
        (208, 208, None, 8, 2, 13),
        (26, 208, None, 8, 2, 13),  # bound to its own cores
        (64, 64, 4.0, 1, 2, 4),  # a container's quota
        (64, 64, 2.0, 4, 2, 1),
        (1, 1, 0.5, 1, 1, 1),
    ],
)
def test_arithmetic_threads(machine, monkeypatch, own, launcher, quota, local_size, hardware_threads, threads):
    machine(own, launcher, quota)
    monkeypatch.setattr(cores, "_siblings", lambda core: str(core // hardware_threads))
    assert cores.arithmetic_threads(local_size) == threads


def test_cores_whose_siblings_are_unknown_are_physical_ones():
    assert cores._siblings(10**6) == "1000000"
