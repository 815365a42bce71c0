"""How fast work is being done just now, and how long the rest of it will take."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mimcl.cli.estimate import Estimate, estimate

_PIECE_S = 1.0  # a piece of work that is timed: as many items as take this long, at least one
_PIECES = 20  # the recent ones that count


class Pace:
    """Times equal pieces of work; the first one is a warm-up. Items may be counted in one thread and read in others."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._since, self._items = clock(), 0.0  # of the piece under way
        self._recent = deque[float]([], _PIECES)  # seconds per item
        self._warm = False

    def advance(self, items: float = 1) -> None:
        """Count items that are done."""
        self._items += items
        now = self._clock()
        if not self._items or now - self._since < _PIECE_S:
            return
        if self._warm:
            self._recent.append((now - self._since) / self._items)
        self._warm = True
        self._since, self._items = now, 0.0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count the time of the block."""
        started = self._clock()
        try:
            yield
        finally:
            self._since += self._clock() - started

    def left(self, items: float) -> Estimate | None:
        """Estimate how long so many items will take at the recent pace; None before a few pieces are done."""
        per_item = estimate(tuple(self._recent), warm_up=0)
        return per_item * items if per_item else None
