"""Progress bars on a terminal, with the time left at the recent pace; of a training plain lines without one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from mimcl.cli.console import console
from mimcl.cli.estimate import Estimate
from mimcl.cli.pace import Pace
from mimcl.cli.screen import printable


class _Rate(ProgressColumn):
    """Images per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f} img/s" if task.speed else "")


class _TimeLeft(ProgressColumn):
    """The time left, as `left()` estimates it."""

    max_refresh = 1.0

    def __init__(self, left: Callable[[], Estimate | None]) -> None:
        super().__init__()
        self._left = left

    def render(self, task: Task) -> Text:
        left = None if task.finished else self._left()
        return Text(f"{left} left" if left else "")


@contextmanager
def image_bar(label: str, total: int | None, shown: bool = True) -> Iterator[Callable[[int], None]]:
    """Show a progress bar with images/s and time left; yield the function that advances it by a number of images.

    A bar that was never advanced is removed at the end.
    """
    pace, done = Pace(), 0
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        _TimeLeft(lambda: None if total is None else pace.left(total - done)),
    )
    with Progress(*columns, console=console, disable=not shown) as progress:
        task = progress.add_task(printable(label), total=total)

        def advance(images: int) -> None:
            nonlocal done
            done += images
            pace.advance(images)
            progress.advance(task, images)

        try:
            yield advance
        finally:
            if not progress.tasks[0].completed:
                progress.live.transient = True
                progress.live.stop()
                progress.disable = True  # otherwise an empty line is printed


class TrainingBar:
    """A bar above a line of figures, which `show` updates after a step; without a terminal `show` prints a line.

    As an observer of a training's steps it counts micro-batches. Once their pace is known it prints how long the
    training will take; from then on the bar, or the line, says how long the rest of it takes at the recent pace.
    Nothing is shown unless `shown`.
    """

    def __init__(
        self,
        step: int,
        steps: int,
        micro_batches: int,
        shown: bool = True,
        costs: Sequence[tuple[int, float]] = ((0, 1.0),),
    ) -> None:
        """The training goes from `step` to `steps`, each of `micro_batches`.

        `costs` are the relative costs of steps, each with the first step that has it, ascending.
        """
        self._steps, self._to_do, self._shown = steps, steps - step, shown
        ends = [*(first for first, _ in costs[1:]), steps]
        # The micro-batches that are left, with the cost of each.
        self._parts = deque(
            (micro_batches * (end - max(first, step)), cost)
            for (first, cost), end in zip(costs, ends, strict=True)
            if end > step
        )
        self._total = self._left = self._work()
        self._pace, self._announced = Pace(), not shown
        self._figures, self._live = Text(no_wrap=False, overflow="fold"), shown and console.is_interactive
        columns = TextColumn("step", markup=False), MofNCompleteColumn(), BarColumn(), _TimeLeft(self._time_left)
        self._progress = Progress(*columns, auto_refresh=False)
        self._task = self._progress.add_task("", total=steps, completed=step)

    def running(self) -> AbstractContextManager[Any]:
        """Show the bar while the block lasts."""
        if not self._live:
            return nullcontext()
        return Live(Group(self._progress, self._figures), console=console, refresh_per_second=4)

    def observe(self, batch: object, per_sample_loss: object) -> None:
        count, cost = self._parts.popleft()
        if count > 1:
            self._parts.appendleft((count - 1, cost))
        self._left = self._work()
        self._pace.advance(cost)
        if not self._announced and (total := self._pace.left(self._total)):
            self._announced = True
            console.print(f"estimated time: {total} for {self._to_do:,} steps")

    def show(self, step: int, figures: str) -> None:
        if self._live:
            self._progress.update(self._task, completed=step)
            self._figures.plain = figures or self._figures.plain
        elif self._shown and figures:
            left = self._time_left() if self._left > 0 else None
            console.print(f"step {step}/{self._steps}  {figures}" + (f"  {left} left" if left else ""))

    def paused(self) -> AbstractContextManager[None]:
        """In the block nothing is trained."""
        return self._pace.paused()

    def _work(self) -> float:
        return sum(count * cost for count, cost in self._parts)

    def _time_left(self) -> Estimate | None:
        return self._pace.left(self._left)
