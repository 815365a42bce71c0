"""A worker process as seen by its parent: its events, its exit, and the reason for it."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

_SCRIPT = Path(__file__).resolve().parents[1] / "gpu_check.py"
START_SECONDS = 120.0  # until the first part: imports from a cold disk, CUDA's start
_GRACE_SECONDS = 10.0  # after its time limit until a process is killed


class Child:
    """A running worker; a context manager that kills it and everything it started.

    Its output is appended to the file `log`; `reason` quotes what was written since the last part began.
    """

    returncode: int  # after the block

    def __init__(self, request: dict[str, Any], environment: dict[str, str], log: Path) -> None:
        read_end, write_end = os.pipe()
        with open(log, "ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, str(_SCRIPT), "--worker", json.dumps({**request, "events": write_end})],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=[write_end],
                process_group=0,  # so that its children can be killed with it
            )
        os.close(write_end)
        self._events = open(read_end, "rb", buffering=0)  # noqa: SIM115 - closed by __exit__
        self._log, self._log_start, self._overdue = log, log.stat().st_size, False

    def __enter__(self) -> Child:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._events.close()
        if kind is None:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_GRACE_SECONDS)
        self._kill()
        self.returncode = self._process.wait()

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def events(self, start_seconds: float) -> Iterator[dict[str, Any]]:
        """Yield events until the process ends; kill it when it exceeds the limit of a part, or `start_seconds`."""
        kill_at, unread = time.monotonic() + min(START_SECONDS, start_seconds) + _GRACE_SECONDS, b""
        while True:
            readable, _, _ = select.select([self._events], [], [], 0.5)
            if readable:
                chunk = self._events.read(1 << 16)
                if not chunk:
                    return
                *texts, unread = (unread + chunk).split(b"\n")
                for event in map(json.loads, texts):
                    if event["event"] == "begin":
                        kill_at = time.monotonic() + event["limit"] + _GRACE_SECONDS
                        self._log_start = event["log_start"]
                    yield event
            elif self._process.poll() is not None:  # its children may hold the pipe open
                return
            elif time.monotonic() > kill_at:
                self._overdue = True
                self._kill()

    def reason(self, seconds: float) -> str:
        """Return why it ended, `seconds` after a part began, from its exit status and its output."""
        with open(self._log, errors="replace") as file:
            file.seek(self._log_start)
            written = file.read()
        after = f"after {seconds:.0f} s"
        if self._overdue or "Timeout (" in written:
            return f"timed out {after}{_innermost(written)}"
        if self.returncode < 0:
            name = signal.Signals(-self.returncode).name
            hint = " (out of memory?)" if name == "SIGKILL" else ""
            return f"the process was killed by {name}{hint} {after}{_innermost(written)}"
        last = " | ".join(line.strip() for line in written.strip().splitlines()[-3:])
        return f"the process exited with code {self.returncode} {after}: {last[-400:]}"


def _innermost(dump: str) -> str:
    """Return the innermost frames of the main thread, which faulthandler dumps last: " in FILE:LINE NAME < ..."."""
    threads = dump.split("(most recent call first):")
    frames = re.findall(r'File "([^"]*)", line (\d+) in (\S+)', threads[-1])[:3] if len(threads) > 1 else []
    places = [f"{Path(path).name}:{number} {name}" for path, number, name in frames]
    return f" in {' < '.join(places)}" if places else ""
