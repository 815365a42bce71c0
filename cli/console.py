"""Terminal output: lines, spinners, and numbers formatted for readers. Progress bars are in `bars`."""

from __future__ import annotations

import io
import math
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console, RenderHook
from rich.live import Live
from rich.text import Text

from mimcl.cli.live import ParkedRender, erase_below
from mimcl.cli.screen import printable


class _Screen(Console):
    """A console that prints a string as one line, whatever is in it."""

    def __init__(self, stderr: bool = False) -> None:
        stream = sys.stderr if stderr else sys.stdout
        is_notebook = "ipykernel" in sys.modules  # whose stream calls itself a terminal; it gets plain lines
        super().__init__(
            stderr=stderr,
            highlight=False,
            markup=False,
            emoji=False,
            soft_wrap=True,
            force_jupyter=False,  # which would need ipywidgets
            force_terminal=False if is_notebook else None,
            force_interactive=None
            if stream.isatty() and not is_notebook
            else False,  # FORCE_COLOR asks for colours, not for bars
        )

    def push_render_hook(self, hook: RenderHook) -> None:
        if isinstance(hook, Live):
            hook._live_render = ParkedRender(hook.get_renderable())
        super().push_render_hook(hook)

    @property
    def shows_bar(self) -> bool:
        """Whether a bar or a spinner is on the screen."""
        return self.is_interactive and bool(self._render_hooks)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)


console = _Screen()
_errors = _Screen(stderr=True)


def warn(line: str) -> None:
    """Print a warning on stderr; above a progress bar if one is shown, by the console that draws it."""
    screen = console if console.shows_bar and _errors.is_terminal else _errors
    screen.print(f"mimcl: {line}")


def print_path(path: Path) -> None:
    """Print a path as a line of its own; for other programs, its exact bytes."""
    if console.is_terminal or not isinstance(sys.stdout, io.TextIOWrapper):
        console.print(str(path))
        return
    sys.stdout.flush()
    sys.stdout.buffer.write(os.fsencode(path) + b"\n")
    sys.stdout.buffer.flush()


def warn_before_exit(line: str) -> None:
    """Print a warning and restore the cursor, for a process that is about to end without cleaning up."""
    warn(line)
    if console.shows_bar:
        console.control(erase_below())  # the bar, at whose start the cursor is
    console.show_cursor()


@contextmanager
def busy(label: str, shown: bool = True) -> Iterator[None]:
    """Show a spinner with a label on a terminal while the block runs."""
    spinner = "line" if console.options.ascii_only else "dots"
    with console.status(Text(printable(label)), spinner=spinner) if shown else nullcontext():
        yield


def format_bytes(count: float) -> str:
    """Return a size with a decimal unit, for example "1.5 GB"."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if count >= factor:
            return f"{count / factor:,.1f} {unit}"
    return f"{count:,.0f} bytes"


def format_duration(seconds: float) -> str:
    """Return a duration, for example "90 s", "14 min", "3 h 05 min" or "2.5 days"; "–" where it is not finite."""
    if not math.isfinite(seconds):
        return "–"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes / (24 * 60):.1f} days"


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """Return a number and its noun, in the plural (by default with an s) unless there is one: 1 shard, 2,000 shards."""
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


def format_epochs(epochs: float) -> str:
    """Return a length, for example "1 epoch" or "2.5 epochs"."""
    return "1 epoch" if epochs == 1 else f"{epochs:g} epochs"


def first_few(names: Iterable[str], count: int = 5) -> str:
    """Join the first names by commas, followed by "..." if there are more."""
    names = list(names)
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
