"""Weights & Biases and MLflow as sinks, each in a process of its own: nothing of theirs stops or slows a run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

_LONGEST = 1 << 24  # bytes that wait while a tracker takes none


@dataclass(frozen=True)
class LogConfig:
    """Where a run's figures go besides its folder."""

    wandb: str | None = None  # project at Weights & Biases
    mlflow: str | None = None  # MLflow's tracking URI


class Tracker:
    """A sink that hands its numbers to `mimcl.model.tracker_process`, which alone knows the service.

    A pipe that never waits leads there. What goes wrong is told once, in one line; from then on the sink is silent.
    """

    def __init__(
        self,
        service: Literal["wandb", "mlflow"],
        settings: Mapping[str, Any],
        log: Path,
        warn: Callable[[str], None],
        patience: float = 20.0,
    ) -> None:
        """`settings` are the arguments of the service's class there, and `log` is where its own words go.

        `patience` is how many seconds `close` waits for what is still on its way; SLURM kills 30 seconds after SIGTERM.
        """
        self._service, self._log, self._warn, self._patience = service, log, warn, patience
        self._unsent, self._gone = b"", False
        with open(log, "ab") as words:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "mimcl.model.tracker_process", service],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=words,
                start_new_session=True,  # Ctrl-C is for the run, which then closes this
            )
        os.set_blocking(self._process.stdin.fileno(), False)
        self._send(settings)

    def write(self, draw: int, numbers: Mapping[str, float]) -> None:
        """Returns at once, whatever becomes of them."""
        self._send({"draw": draw, "numbers": numbers})

    def close(self) -> None:
        """Waits until everything has arrived, as long as patience lasts."""
        if self._gone:
            return
        self._gone = True
        try:
            said, _ = self._process.communicate(self._unsent, timeout=self._patience)
        except subprocess.TimeoutExpired:
            self._kill()
            return self._complain(b"it has not taken everything in time")
        if self._process.returncode:
            self._complain(said)

    def _send(self, message: Mapping[str, Any]) -> None:
        if self._gone:
            return
        self._unsent += json.dumps(message).encode() + b"\n"
        try:
            while self._unsent and (taken := self._process.stdin.write(self._unsent)):
                self._unsent = self._unsent[taken:]
        except BrokenPipeError:
            self._gone = True
            said, _ = self._process.communicate()
            self._complain(said)
        if len(self._unsent) > _LONGEST:
            self._gone = True
            self._kill()
            self._complain(b"it has taken nothing for long")

    def _kill(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)  # and the process that wandb starts
        self._process.communicate()

    def _complain(self, said: bytes) -> None:
        what = said.decode().strip() or f"its process ended with {self._process.returncode}"
        self._warn(f"{self._service} goes without the rest: {what}; metrics.jsonl has it, {self._log} says more")
