"""SIGTERM, SIGHUP and Ctrl-C end a run after the step, saved; a second Ctrl-C, or a stuck step, ends it at once."""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

_FAILED, _INTERRUPTED = 1, 130
_REQUESTS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
_LAST_WORDS_SECONDS = 1.0


class StopSignals:
    """While the block lasts, SIGTERM, SIGHUP and Ctrl-C set `requested` and nothing else.

    SIGHUP says that the terminal is gone; nohup has it ignored, and then it stays so.

    Python runs its handlers only between two instructions of the main thread, which may wait for a process that is
    gone. A thread that reads the signals from a pipe sees them in any case; it ends the process at once, without
    saving, on a second Ctrl-C, and when no step was done within `grace_seconds` beyond the length of the longest one.
    """

    def __init__(self, before_leaving: Callable[[str], None], grace_seconds: float = 10.0) -> None:
        """`before_leaving` gets the last words, one line, when the process is ended from within the thread.

        torchrun and SLURM kill 30 seconds after SIGTERM.
        """
        self.requested = False
        self._before_leaving, self._grace = before_leaving, grace_seconds
        self._began, self._length = time.monotonic(), 0.0  # of the step under way; of the longest step so far
        self._patient = False

    def step_done(self) -> None:
        """A step is complete; the next begins."""
        now = time.monotonic()
        self._began, self._length = now, max(self._length, now - self._began)

    @contextmanager
    def pausing(self) -> Iterator[None]:
        """What is done in the block may take as long as it takes: it is no part of a step."""
        self._patient = True
        yield
        self._patient, self._began = False, time.monotonic()

    def be_patient(self) -> None:
        """Training has ended: what is left, saving, may take as long as it takes."""
        self._patient = True

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

    def _note(self, *_: object) -> None:
        self.requested = True

    def _watch(self) -> None:
        asked, interrupts = None, 0
        while True:
            ready, _, _ = select.select([self._reader], [], [], None if asked is None else 0.2)
            if ready:
                numbers = os.read(self._reader, 64)
                if not numbers:
                    return
                interrupts += numbers.count(signal.SIGINT)
                if interrupts > 1:
                    self._leave(_INTERRUPTED, "interrupted twice: left at once, without saving")
                if asked is None and set(_REQUESTS).intersection(numbers):
                    self.requested, asked = True, time.monotonic()
            elif not self._patient and time.monotonic() > max(asked, self._began) + self._length + self._grace:
                self._leave(_FAILED, "asked to stop, but the step does not end (a process or a disk that does not "
                            "answer?): left without saving; the last checkpoint stands")  # fmt: skip

    def _leave(self, code: int, words: str) -> None:
        # Beside: the main thread may be stuck in writing to a terminal, with the lock that these words need.
        speaking = threading.Thread(target=self._before_leaving, args=(words,), daemon=True)
        speaking.start()
        speaking.join(_LAST_WORDS_SECONDS)
        os._exit(code)
