"""Progress bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
_errors = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)


def warn(line: str) -> None:
    """Says something on stderr, above a bar if there is one."""
    _errors.print(f"mimcl: {line}")


def last_words(line: str) -> None:
    """Says something before the process ends without cleaning up."""
    warn(line)
    console.show_cursor()


class _Rate(ProgressColumn):
    """Images a second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f} img/s" if task.speed else "")


@contextmanager
def image_bar(label: str, total: int | None, shown: bool = True) -> Iterator[Callable[[int], None]]:
    """A bar with images/s and time left; gives the function that advances it by a number of images.

    Nothing stays of a bar that was never advanced: there was nothing to do, or it failed at once.
    """
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not shown) as progress:
        task = progress.add_task(label, total=total)
        try:
            yield lambda images: progress.advance(task, images)
        finally:
            if not progress.tasks[0].completed:
                progress.live.transient = True
                progress.live.stop()
                progress.disable = True  # else an empty line is printed


@contextmanager
def busy(label: str, shown: bool = True) -> Iterator[None]:
    """Says on a terminal what is being done, for as long as the block lasts."""
    with console.status(label) if shown else nullcontext():
        yield


@contextmanager
def training_bar(step: int, steps: int) -> Iterator[Callable[[int, str], None]]:
    """Gives the function (step, figures) that moves a bar above a line of figures, or prints a line where there are."""
    if not console.is_terminal:
        yield lambda step, figures: console.print(f"step {step}/{steps}  {figures}") if figures else None
        return
    columns = (TextColumn("step", markup=False), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
    progress, latest = Progress(*columns, auto_refresh=False), Text()
    task = progress.add_task("", total=steps, completed=step)

    def show(step: int, figures: str) -> None:
        progress.update(task, completed=step)
        latest.plain = figures or latest.plain

    with Live(Group(progress, latest), console=console, refresh_per_second=4):
        yield show
