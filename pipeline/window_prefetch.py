"""Planning of windows in the background, and announcement of their reads to the store."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, InvalidStateError, wait
from contextlib import suppress
from typing import NamedTuple

from mimcl.pipeline.plan import Plan, Window
from mimcl.pipeline.read_plan import ReadPlan, ReadPlanner, ReadStats


class StopEvent(Future[None]):
    """Set once no more batches are wanted, by any thread. A Future, so that it can be waited for beside another one."""

    def set(self) -> None:
        with suppress(InvalidStateError):  # set already
            self.set_result(None)


class PlannedWindow(NamedTuple):
    """A window; if its reads are planned, also those of each stretch and their statistics."""

    window: Window
    read_plans: list[ReadPlan]
    read_stats: ReadStats | None


class WindowPrefetch(threading.Thread):
    """Plans one window in the background as soon as that is possible, unless stopped before.

    A daemon thread, unlike an executor's: a plan that hangs cannot keep the program alive.
    """

    def __init__(self, plan: Plan, number: int, stop: StopEvent, read_planner: ReadPlanner | None) -> None:
        super().__init__(name="plan", daemon=True)
        self._plan, self._number, self._stop_event, self._read_planner = plan, number, stop, read_planner
        self._planned: Future[PlannedWindow] = Future()
        self.start()

    def run(self) -> None:
        try:
            if ready := self._plan.when_ready(self._number):
                wait((ready, self._stop_event), return_when=FIRST_COMPLETED)
            if self._stop_event.done():
                raise CancelledError
            window = self._plan.window(self._number)
            read_plans, read_stats = self._read_planner(window) if self._read_planner else ([], None)
            self._planned.set_result(PlannedWindow(window, read_plans, read_stats))
        except Exception as error:
            self._planned.set_exception(error)

    def result(self) -> PlannedWindow:
        """Wait for the window. Raises the error of the planning, or CancelledError if it was stopped."""
        return self._planned.result()

    def result_if_done(self) -> PlannedWindow | None:
        """The window if it is planned; None before, and if planning failed."""
        if self._planned.done() and not self._planned.exception():
            return self._planned.result()
        return None


class ReadAnnouncer:
    """Announces reads to a store: those of each stretch when the stretch before it begins to be used."""

    def __init__(self, prefetch: Callable[[ReadPlan], None], start: int) -> None:
        """`start` is the first draw that will be used."""
        self._prefetch, self._start = prefetch, start
        self._pending: deque[tuple[int, ReadPlan]] = deque()  # with the draw whose use triggers the announcement
        self._trigger, self._next_window = start, 0

    def add(self, planned: PlannedWindow) -> None:
        """Add the next window, in order; a window that was added before is ignored."""
        window = planned.window
        if window.number < self._next_window:
            return
        self._next_window = window.number + 1
        for number, read_plan in enumerate(planned.read_plans):
            first, stop = (window.first_draw + int(window.stretches[number + offset]) for offset in (0, 1))
            if stop > self._start:
                self._pending.append((self._trigger, read_plan))
                self._trigger = first

    def use(self, draw: int) -> None:
        """Announce what is due now that all draws up to this one are about to be read."""
        while self._pending and self._pending[0][0] <= draw:
            _, read_plan = self._pending.popleft()
            if len(read_plan.start):
                self._prefetch(read_plan)
