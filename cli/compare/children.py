"""Commands of mimcl as processes of their own, one after the other, which a signal ends saved."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from mimcl.cli.run.signals import StopSignals

_POLL_SECONDS = 0.1
_PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>


class StoppedError(Exception):
    """Asked to stop; what was under way has saved."""


class ChildError(Exception):
    """A command failed; one line with its own last one."""


def command(*arguments: str, processes: int = 1) -> list[str]:
    """`mimcl ARGUMENTS` with this Python, under torchrun when there are several processes."""
    mimcl = ["-m", "mimcl.cli.main", *arguments]
    if processes > 1:
        mimcl = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), *mimcl]
    return [sys.executable, *mimcl]


def run_to_end(words: Sequence[str], log: Path, signals: StopSignals) -> None:
    """Runs a command to its end; all that it prints goes to the end of `log`.

    When `signals` has a request, the process gets SIGTERM, has all the time it needs, and StoppedError is raised.
    When this process is killed, the other gets SIGTERM as well, on Linux; elsewhere it goes on alone. Raises ChildError
    when it fails.
    """
    if signals.requested:
        raise StoppedError
    with open(log, "ab") as output:
        # In a session of its own: Ctrl-C comes from here alone, once.
        process = subprocess.Popen(
            words,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_tether(),
            env=os.environ | {"PYTHONSAFEPATH": "1"},  # modules of the working directory are none of ours
        )
    told = False
    while True:
        try:
            code = process.wait(_POLL_SECONDS)
            break
        except subprocess.TimeoutExpired:
            if signals.requested and not told:
                process.send_signal(signal.SIGTERM)
                told = True
    if told and code:  # torchrun's code does not say that its processes have saved
        raise StoppedError
    if code:
        raise ChildError(f"`mimcl {_subject(words)}` failed with exit code {code}: {_last_line(log)}; all is in {log}")


def _tether() -> Callable[[], None] | None:
    """What a child does before anything else, so that it is told to stop when this process is gone; on Linux alone."""
    if sys.platform != "linux":
        return None
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def tether() -> None:  # in a process that has one thread of several: it imports nothing and waits for nothing
        prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
        if os.getppid() != parent:  # gone already
            os._exit(1)

    return tether


def _subject(words: Sequence[str]) -> str:
    """The command's name and what it was about."""
    arguments = words[words.index("mimcl.cli.main") + 1 :]
    return " ".join(arguments[:2] if arguments[0] == "eval" else arguments[:1])


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    ours = [line for line in lines if line.startswith("mimcl: ")]
    return (ours or lines or ["it said nothing"])[-1].removeprefix("mimcl: ")
