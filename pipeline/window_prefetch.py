"""Planning a window beside what goes on, which must neither keep a stream from ending nor hold the program."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, InvalidStateError, wait
from contextlib import suppress
from typing import NamedTuple

from mimcl.pipeline.plan import Plan, Window
from mimcl.pipeline.read_plan import ReadFigures, ReadPlanner, Reads


class Ended(Future[None]):
    """Set when no more batches are wanted, by whichever thread knows first; a Future, to wait for it beside another."""

    def set(self) -> None:
        with suppress(InvalidStateError):  # set already
            self.set_result(None)


class Planned(NamedTuple):
    """A window, and what is read for it where that is planned: reads of each stretch, and what they come to."""

    window: Window
    reads: list[Reads]
    figures: ReadFigures | None


class Ahead(threading.Thread):
    """Plans a window in the background, as soon as it can be planned, unless all has ended before.

    A daemon, unlike an executor's: a plan that hangs cannot hold the program.
    """

    def __init__(self, plan: Plan, number: int, ended: Ended, reads: ReadPlanner | None) -> None:
        super().__init__(name="plan", daemon=True)
        self._plan, self._number, self._ended, self._reads = plan, number, ended, reads
        self._planned: Future[Planned] = Future()
        self.start()

    def run(self) -> None:
        try:
            if known := self._plan.known(self._number):
                wait((known, self._ended), return_when=FIRST_COMPLETED)
            if self._ended.done():
                raise CancelledError
            window = self._plan.window(self._number)
            if self._reads is None:
                self._planned.set_result(Planned(window, [], None))
            else:
                self._planned.set_result(Planned(window, *self._reads(window)))
        except Exception as error:
            self._planned.set_exception(error)

    def result(self) -> Planned:
        """The window and its reads; raises what planning them raised, CancelledError when all has ended."""
        return self._planned.result()

    def ready(self) -> Planned | None:
        """As soon as it is there; None before, and where planning failed."""
        if self._planned.done() and not self._planned.exception():
            return self._planned.result()
        return None


class Announced:
    """Tells a store what will be read: each stretch when the one before it begins to be used."""

    def __init__(self, expect: Callable[[Reads], None], start: int) -> None:
        """Use begins at draw `start`."""
        self._expect, self._start = expect, start
        self._due: deque[tuple[int, Reads]] = deque()  # with the first draw of the stretch before
        self._before, self._windows = start, 0

    def add(self, planned: Planned) -> None:
        """The next window, in order; one that was added already is not added again."""
        window = planned.window
        if window.number < self._windows:
            return
        self._windows = window.number + 1
        for place, reads in enumerate(planned.reads):
            first, end = (window.first_draw + int(window.stretches[place + further]) for further in (0, 1))
            if end > self._start:
                self._due.append((self._before, reads))
                self._before = first

    def use(self, draw: int) -> None:
        """All before and up to this draw is about to be read."""
        while self._due and self._due[0][0] <= draw:
            _, reads = self._due.popleft()
            if len(reads.start):
                self._expect(reads)
