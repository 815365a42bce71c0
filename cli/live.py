"""Progress bars that survive a change of the window's size."""

from __future__ import annotations

from rich.console import Console, ConsoleOptions, RenderResult
from rich.control import Control
from rich.live_render import LiveRender
from rich.segment import ControlType, Segment


class ParkedRender(LiveRender):
    """Draws a bar and moves the cursor back to its start, so that all of it can be erased before it is drawn again.

    rich leaves the cursor at the end and goes up by as many rows as it drew; in a window that has become narrower, the
    terminal has broken them into more rows, and the first ones would stay.
    """

    def position_cursor(self) -> Control:
        return erase_below() if self._shape else Control()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from super().__rich_console__(console, options)
        if self.last_render_height and self.vertical_overflow != "visible":  # which rich sets for the last drawing
            up = self.last_render_height - 1
            yield _control("\r" + f"\x1b[{up}A" * bool(up)).segment


def erase_below() -> Control:
    """Return the sequence that erases from the line of the cursor to the end of the screen."""
    return _control("\r\x1b[J")


def _control(sequence: str) -> Control:
    control = Control()
    control.segment = Segment(sequence, None, [(ControlType.CARRIAGE_RETURN,)])  # rich has no name for it
    return control
