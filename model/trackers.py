"""Weights & Biases and MLflow as sinks: a background thread sends the values, and training never waits for it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated

from mimcl.model.tracker_services import Rows, ServiceConfig, ServiceName, connect

_MAX_QUEUED = 10_000  # rows
_MAX_REASON = 300  # characters


@dataclass(frozen=True)
class LogConfig:
    """Where metrics go in addition to the run folder."""

    wandb: Annotated[str | None, "Project at Weights & Biases."] = None
    mlflow: Annotated[str | None, "MLflow's tracking URI: http://HOST:5000 or sqlite:///FILE."] = None


class Tracker:
    """A sink for a tracking service. Rows that do not fit into its queue are dropped and counted.

    Any error is reported in one warning, after which nothing more is sent; it never reaches the caller.
    """

    close_timeout_s = 20.0  # SLURM kills 30 seconds after SIGTERM

    def __init__(self, service: ServiceName, config: ServiceConfig, warn: Callable[[str], None]) -> None:
        """`warn` may be called from the background thread."""
        self._service, self._config, self._warn = service, config, warn
        self._queue: queue.SimpleQueue[tuple[int, dict[str, float]] | None] = queue.SimpleQueue()
        self._written = self._sent = 0  # rows
        self._closed = self._failed = False
        # A daemon: the interpreter does not wait for it at exit.
        self._thread = threading.Thread(target=self._send, name=service, daemon=True)
        self._thread.start()

    def write(self, draw: int, values: Mapping[str, float]) -> None:
        """Queue one row; returns at once."""
        if self._closed or self._failed:
            return
        self._written += 1
        if self._queue.qsize() < _MAX_QUEUED:
            self._queue.put((draw, dict(values)))

    def close(self) -> None:
        """Wait until everything is sent, at most `close_timeout_s`."""
        if self._closed:
            return
        self._queue.put(None)
        self._thread.join(self.close_timeout_s)
        failed, self._closed = self._failed, True
        unsent = self._written - self._sent
        if not failed and (unsent or self._thread.is_alive()):
            self._warn(
                f"{self._service} did not accept {unsent} of {self._written} rows (waited {self.close_timeout_s:g} s "
                "at the end); metrics.jsonl has them all"
            )

    def _send(self) -> None:
        try:
            service = connect(self._service, self._config)
            ended = False
            while not ended:
                rows, ended = self._next_rows()
                service.log(rows)
                self._sent += len(rows)
            service.close()
        except Exception as error:
            self._failed = True
            if not self._closed:
                reason = " ".join(str(error).split())[:_MAX_REASON] or type(error).__name__
                self._warn(
                    f"logging to {self._service} is disabled for the rest of this run ({reason}); metrics.jsonl has "
                    "everything"
                )

    def _next_rows(self) -> tuple[Rows, bool]:
        """Wait for at least one queued row; return all of them, and whether they are the last ones."""
        queued = [self._queue.get()]
        while not self._queue.empty():
            queued.append(self._queue.get())
        return [row for row in queued if row], queued[-1] is None
