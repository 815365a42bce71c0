"""Jobs run in worker processes whatever the program that starts them is: a script, standard input, a notebook."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mimcl.pipeline.files import DataError
from mimcl.pipeline.packing.process_pool import run

pytestmark = pytest.mark.slow

JOBS = """
import errno, os, signal, time

class Unsendable(Exception):
    def __init__(self, what, how):
        super().__init__(what)
    def __reduce__(self):
        raise TypeError

def write_pid(name, advance):
    with open(name, "x") as file:
        file.write(str(os.getpid()))
    time.sleep(0.2)
    advance(1)

def fail(kind, advance):
    if kind == "OSError":
        raise OSError(errno.ENOSPC, "full", "place")
    if kind == "Unsendable":
        raise Unsendable("odd", "ways")
    if kind == "exit":
        os._exit(3)
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    for _ in range(600):
        time.sleep(0.1)
        advance(0)
"""
PROGRAM = """
import sys
print("started")
sys.path.append("modules")  # workers search it too
from jobs import write_pid
from mimcl.pipeline.packing.process_pool import run
counts = []
run(write_pid, [f"job{number}" for number in range(5)], 5, 2, counts.append)
print(sum(counts))
"""


def in_a_notebook(program: str) -> str:
    """Return a program that runs `program` as IPython does: in a main module without a file, beside a thread."""
    return (
        "import sys, threading, types\n"
        "sys.modules['__main__'] = main = types.ModuleType('__main__')\n"
        "threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        f"exec(compile({program!r}, '<ipython-input-1>', 'exec'), main.__dict__)\n"
    )


def in_a_thread(program: str) -> str:
    return (
        "import threading\n"
        f"thread = threading.Thread(target=exec, args=({program!r},))\n"
        "thread.start()\n"
        "thread.join()\n"
    )


def in_a_daemon(program: str) -> str:
    """Return a program that runs `program` in a process that may not start others by multiprocessing."""
    return (
        "import multiprocessing\n"
        f"process = multiprocessing.get_context('fork').Process(target=exec, args=({program!r}, {{}}), daemon=True)\n"
        "process.start()\n"
        "process.join()\n"
        "raise SystemExit(process.exitcode)\n"
    )


@pytest.fixture
def jobs(tmp_path, monkeypatch):
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "jobs.py").write_text(JOBS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    yield __import__("jobs")
    del sys.modules["jobs"]


def written() -> list[str]:
    """Return the process of each job that has run."""
    return [path.read_text() for path in sorted(Path().glob("job*"))]


@pytest.mark.parametrize("wrapped", [str, in_a_notebook, in_a_thread, in_a_daemon])
@pytest.mark.parametrize("by_stdin", [False, True])
def test_no_main_guard_is_needed(jobs, wrapped, by_stdin):
    program = wrapped(PROGRAM)
    Path("script.py").write_text(program)
    done = subprocess.run(
        [sys.executable, "-" if by_stdin else "script.py"],
        input=program if by_stdin else "",
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "started\n5\n", "")
    assert len(written()) == 5
    assert len(set(written())) == 2


def test_one_worker_or_job_needs_no_process(jobs):
    run(jobs.write_pid, ["job1", "job2"], 2, 1, lambda count: None)
    run(jobs.write_pid, ["job3"], 1, 4, lambda count: None)
    assert written() == [str(os.getpid())] * 3


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("OSError", OSError, r"\[Errno 28\] full: 'place'"),
        ("Unsendable", RuntimeError, "Unsendable: odd"),
        ("exit", DataError, "a worker process ended with exit code 3; run the same command again"),
        ("kill", DataError, "a worker process was killed .*; run the same command again.* with fewer --workers"),
    ],
)
def test_an_error_ends_all_jobs(jobs, kind, error, message):
    with pytest.raises(error, match=message):
        run(jobs.fail, ["wait", "wait", kind, *["wait"] * 9], 12, 3, lambda count: None)


def test_an_error_in_on_progress_ends_all_jobs(jobs):
    def fail(_count):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(jobs.fail, ["wait"] * 4, 4, 2, fail)


class OfTheTest:
    """Workers do not import the module of a test."""


def test_a_job_of_a_class_that_workers_cannot_import(jobs, monkeypatch):
    monkeypatch.setattr(OfTheTest, "__module__", "__main__")
    monkeypatch.setattr(sys.modules["__main__"], "OfTheTest", OfTheTest, raising=False)
    with pytest.raises(DataError, match="cannot import a class of its job .*OfTheTest.*; define it in a module"):
        run(jobs.write_pid, [OfTheTest(), OfTheTest()], 2, 2, lambda count: None)
