"""Stop requests by signal: a training ends after its step, saved; a second Ctrl-C ends it at once.

A step that does not end is abandoned: the process ends in the middle of it, after saving the position before it.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import NamedTuple, NoReturn, Protocol, TypeVar

from mimcl.cli import interrupt
from mimcl.cli.errors import STOPPED_EXIT_CODE

_FAILED, _STOPPED, _INTERRUPTED = 1, STOPPED_EXIT_CODE, interrupt.EXIT_CODE
_REQUESTS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
_REPORT_TIMEOUT_S = 1.0
_STATE_TIMEOUT_S = 5.0
_ABANDONED = "asked to stop, but the current step does not finish: abandoned it and saved the position before it"
_UNSAVED = (
    "asked to stop, but the current step does not finish (is a process or a disk not responding?): exiting without "
    "saving; resume from the last checkpoint"
)

T = TypeVar("T")


class StateLock(Protocol):
    """A lock that the training thread holds while its state may change."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool: ...


class _Abandoned(NamedTuple):
    changing: StateLock
    save: Callable[[], bool]
    continued: str


class StopSignals:
    """While the block lasts, SIGTERM, SIGHUP and Ctrl-C only set `requested`.

    SIGHUP means that the terminal was closed; under nohup it is ignored, and stays ignored.

    Python runs signal handlers between two instructions of the main thread, which may be waiting for a process that
    died. A thread that reads the signals from a pipe always sees them. It ends the process at once, without saving, on
    a second Ctrl-C, and when a step takes `grace_seconds` longer than the longest step so far: after saving, if
    `abandon_with` says how, and if that takes at most `save_seconds`.
    """

    def __init__(
        self, before_leaving: Callable[[str], None], grace_seconds: float = 10.0, save_seconds: float = 60.0
    ) -> None:
        """`before_leaving` prints one line before the thread ends the process.

        torchrun and SLURM kill 30 seconds after SIGTERM.
        """
        self.requested = False
        self._before_leaving, self._grace, self._save_timeout = before_leaving, grace_seconds, save_seconds
        self._abandoned: _Abandoned | None = None
        self._ending = threading.Lock()  # held by the thread that saves at the end: the training's own, or another
        self._began, self._length = time.monotonic(), 0.0  # of the step under way; of the longest step so far
        self._has_timeout, self._ended = True, False

    def timed(self, steps: Iterable[T]) -> Iterator[T]:
        """Yield the same items; each ends a step."""
        for step in steps:
            self.step_done()
            yield step

    @contextmanager
    def timeout_suspended(self) -> Iterator[None]:
        """In the block no time limit applies: it is not part of a step."""
        self._has_timeout = False
        yield
        self._has_timeout, self._began = True, time.monotonic()

    def disable_timeout(self) -> None:
        """Apply no time limit from now on: training has ended, and saving may take long.

        Does not return if a step is being abandoned, since that has saved the training and ends the process.
        """
        if not self._ended:
            self._ending.acquire()
        self._ended, self._has_timeout = True, False

    def abandon_with(self, changing: StateLock, save: Callable[[], bool], continued: str) -> None:
        """Let a step that does not end be abandoned after `save()`, called in another thread that holds `changing`.

        `save` returns whether it could, or raises an error; `continued` says how the training is continued.
        """
        self._abandoned = _Abandoned(changing, save, continued)

    def __enter__(self) -> StopSignals:
        self._began = time.monotonic()
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        heard = [n for n in _REQUESTS if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
        self._handlers = {number: signal.signal(number, self._note) for number in heard}
        self._wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, name="signals", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        os.close(self._writer)  # ends the thread
        self._thread.join()
        os.close(self._reader)

    def step_done(self) -> None:
        """Note that a step is complete, and the next one begins."""
        now = time.monotonic()
        self._began, self._length = now, max(self._length, now - self._began)

    def _note(self, *_: object) -> None:
        self.requested = True

    def _watch(self) -> None:
        requested_at = saving_since = None
        interrupts = 0
        pipe = select.poll()  # select() takes descriptors below 1,024 only
        pipe.register(self._reader, select.POLLIN)
        while True:
            if pipe.poll(None if requested_at is None else 200):
                numbers = os.read(self._reader, 64)
                if not numbers:
                    return
                interrupts += numbers.count(signal.SIGINT)
                if interrupts > 1:
                    self._leave(_INTERRUPTED, "interrupted twice: exiting at once, without saving")
                if requested_at is None and set(_REQUESTS).intersection(numbers):
                    self.requested, requested_at = True, time.monotonic()
            elif self._ended or requested_at is None:
                continue
            elif saving_since is not None:
                if time.monotonic() > saving_since + self._save_timeout:
                    self._leave(_FAILED, _UNSAVED)
            elif self._has_timeout and self._overdue(requested_at):
                saving_since = time.monotonic()
                threading.Thread(target=self._abandon, name="abandon", daemon=True).start()

    def _abandon(self) -> None:
        """Save the position before the step under way and end the process; return if the training ends by itself."""
        if self._abandoned is None:
            self._leave(_FAILED, _UNSAVED)
        changing, save, continued = self._abandoned
        if not changing.acquire(timeout=_STATE_TIMEOUT_S):
            self._leave(_FAILED, _UNSAVED)
        if not self._ending.acquire(blocking=False):
            return
        try:
            saved = save()
        except Exception as error:
            self._leave(_FAILED, f"{_UNSAVED}: {error}")
        if not saved:
            self._leave(_FAILED, _UNSAVED)
        self._leave(_STOPPED, f"{_ABANDONED}; {continued}")

    def _overdue(self, requested_at: float) -> bool:
        return time.monotonic() > max(requested_at, self._began) + self._length + self._grace

    def _leave(self, code: int, line: str) -> NoReturn:
        # In a thread: the main thread may be stuck writing to a terminal, holding the lock that this line needs.
        reporting = threading.Thread(target=self._before_leaving, args=(line,), daemon=True)
        reporting.start()
        reporting.join(_REPORT_TIMEOUT_S)
        os._exit(code)
