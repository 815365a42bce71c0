"""Planning a window beside what goes on, which must neither keep a stream from ending nor hold the program."""

from __future__ import annotations

import threading
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, InvalidStateError, wait
from contextlib import suppress

from mimcl.pipeline.plan import Plan, Window


class Ended(Future[None]):
    """Set when no more batches are wanted, by whichever thread knows first; a Future, to wait for it beside another."""

    def set(self) -> None:
        with suppress(InvalidStateError):  # set already
            self.set_result(None)


class Ahead(threading.Thread):
    """Plans a window in the background, as soon as it can be planned, unless all has ended before.

    A daemon, unlike an executor's: a plan that hangs cannot hold the program.
    """

    def __init__(self, plan: Plan, number: int, ended: Ended) -> None:
        super().__init__(name="plan", daemon=True)
        self._plan, self._number, self._ended = plan, number, ended
        self._planned: Future[Window] = Future()
        self.start()

    def run(self) -> None:
        try:
            if known := self._plan.known(self._number):
                wait((known, self._ended), return_when=FIRST_COMPLETED)
            if self._ended.done():
                raise CancelledError
            self._planned.set_result(self._plan.window(self._number))
        except Exception as error:
            self._planned.set_exception(error)

    def result(self) -> Window:
        """The window; raises what planning it raised, CancelledError when all has ended."""
        return self._planned.result()
