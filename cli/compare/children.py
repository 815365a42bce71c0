"""Run mimcl commands as child processes; a stop signal lets them save before they exit."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from mimcl.cli.run.signals import StopSignals
from mimcl.cli.suggest import command as suggested

_POLL_SECONDS = 0.1
_PR_SET_PDEATHSIG = 1  # from <linux/prctl.h>


class StoppedError(Exception):
    """A stop was requested; the running command has saved its state."""


class ChildError(Exception):
    """A command failed; the message includes the last line of its log."""


def command(*arguments: str, processes: int = 1) -> list[str]:
    """Return the command line of `mimcl ARGUMENTS` with this Python, under torchrun for several processes."""
    mimcl = ["-m", "mimcl.cli.main", *arguments]
    if processes > 1:
        mimcl = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), *mimcl]
    return [sys.executable, *mimcl]


def run_to_end(words: Sequence[str], log: Path, signals: StopSignals, threads: int | None = None) -> None:
    """Run a command and append its output to `log`. Raises ChildError if it fails.

    It computes on as many threads as this process, or on `threads`.

    Once `signals` has a request, the child gets SIGTERM and as much time as it needs to save; then StoppedError is
    raised. On Linux the child also gets SIGTERM when this process is killed; elsewhere it continues.
    """
    if signals.requested:
        raise StoppedError
    # It must not import modules from the working directory.
    environment = os.environ | {"PYTHONSAFEPATH": "1"} | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    with open(log, "ab") as output:
        # In its own session, so that Ctrl-C reaches it only through this process, once.
        process = subprocess.Popen(
            words,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_death_signal(),
            env=environment,
        )
    stopping = False
    while True:
        try:
            code = process.wait(_POLL_SECONDS)
            break
        except subprocess.TimeoutExpired:
            if signals.requested and not stopping:
                process.send_signal(signal.SIGTERM)
                stopping = True
    if stopping and code:  # torchrun's exit code does not show whether its processes have saved
        raise StoppedError
    if code:
        raise ChildError(f"`{suggested(_name(words))}` failed with exit code {code}: {_last_line(log)}; see {log}")


def _death_signal() -> Callable[[], None] | None:
    """Return a function that makes a child process receive SIGTERM when this process dies; None except on Linux."""
    if sys.platform != "linux":
        return None
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def request() -> None:  # runs between fork and exec: must not import or wait for locks
        prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
        if os.getppid() != parent:  # this process has died already
            os._exit(1)

    return request


def _name(words: Sequence[str]) -> str:
    """Return the command's name, with the evaluation of `eval`."""
    arguments = words[words.index("mimcl.cli.main") + 1 :]
    return " ".join(arguments[:2] if arguments[0] == "eval" else arguments[:1])


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
    ours = [line for line in lines if line.startswith("mimcl: ")]
    return (ours or lines or ["no output"])[-1].removeprefix("mimcl: ")
