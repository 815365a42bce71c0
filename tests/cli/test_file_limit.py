"""The limit of open files of a command."""

import resource
import subprocess
import sys

import pytest

_RAISED = """import resource
from mimcl.cli.file_limit import raise_file_limit
raise_file_limit()
print(*resource.getrlimit(resource.RLIMIT_NOFILE))"""


@pytest.mark.parametrize(
    ("before", "after"), [((64, 4096), 4096), ((64, 64), 64), ((500, 501), 501), ((4096, 4096), 4096)]
)
def test_the_soft_limit_becomes_the_hard_one(before, after):
    done = subprocess.run(
        [sys.executable, "-c", _RAISED],
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, before),
    )
    assert done.stdout.split() == [str(after), str(before[1])]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((1024, 1 << 30), (1 << 16, 1 << 30)),
        ((1 << 20, 1 << 30), None),
        ((1024, resource.RLIM_INFINITY), (1 << 16, resource.RLIM_INFINITY)),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), None),
    ],
)
def test_huge_and_missing_hard_limits(monkeypatch, before, after):
    from mimcl.cli.file_limit import raise_file_limit

    chosen: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", {resource.RLIMIT_NOFILE: before}.get)
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limits: chosen.append(limits))
    raise_file_limit()
    assert chosen == ([after] if after else [])
