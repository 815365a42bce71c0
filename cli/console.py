"""Progress bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)


class _Rate(ProgressColumn):
    """Images a second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f} img/s" if task.speed else "")


@contextmanager
def image_bar(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar with images/s and time left; gives the function that advances it by a number of images."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(label, total=total)
        yield lambda images: progress.advance(task, images)


@contextmanager
def training_bar(step: int, steps: int) -> Iterator[Callable[[int, str], None]]:
    """A bar over steps above a line of figures; gives the function (step, figures) that moves it."""
    columns = (TextColumn("step", markup=False), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
    progress = Progress(*columns, console=console, auto_refresh=False)
    task = progress.add_task("", total=steps, completed=step)
    latest = Text()
    with Live(Group(progress, latest), console=console, refresh_per_second=4):

        def show(step: int, figures: str) -> None:
            progress.update(task, completed=step)
            if figures:
                latest.plain = figures
                if not console.is_terminal:
                    console.print(f"step {step}/{steps}  {figures}")

        yield show
