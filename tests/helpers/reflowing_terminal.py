"""A terminal that breaks long lines anew when its width changes, as most do, and a process that runs in one."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios

_TOKEN = re.compile(r"\x1b\[\??([\d;]*)([A-Za-z])|(\r)|(\n)|([^\x1b\r\n\a]+)")


class Screen:
    """Logical lines and the cursor in them; their rows depend on the width."""

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.lines = [""]
        self.line = self.column = 0

    def feed(self, text: str) -> None:
        for parameter, code, cr, lf, plain in _TOKEN.findall(text):
            if cr:
                self.column = self._row()
            elif lf:
                self._down()
            elif plain:
                kept = self.lines[self.line].ljust(self.column)
                self.lines[self.line] = kept[: self.column] + plain + kept[self.column + len(plain) :]
                self.column += len(plain)
            elif code == "A":
                for _ in range(int(parameter or 1)):
                    self._up()
            elif code == "J":
                self.lines[self.line] = self.lines[self.line][: self.column]
                del self.lines[self.line + 1 :]
            elif code == "K":
                self.lines[self.line] = self.lines[self.line][: self._row()]

    def _row(self) -> int:
        """Return where the cursor's row starts; after its last column the cursor is still in it."""
        return max(self.column - 1, 0) // self.columns * self.columns

    def _down(self) -> None:
        self.line, self.column = self.line + 1, 0
        if self.line == len(self.lines):
            self.lines.append("")

    def _up(self) -> None:
        inside = self.column - self._row()
        if self._row():
            self.column -= self.columns
        elif self.line:
            self.line -= 1
            self.column = max(len(self.lines[self.line]) - 1, 0) // self.columns * self.columns + inside


def run_resized(command: list[str], before: int, after: int, **environment: str) -> tuple[Screen, str]:
    """Run a command in a window that changes its width where it rings the bell; return the screen, and all output."""
    parent, child = pty.openpty()
    _resize(child, before)
    process = subprocess.Popen(
        command, stdin=child, stdout=child, stderr=child, env={**os.environ, "TERM": "xterm", **environment}
    )
    os.close(child)
    screen, written = Screen(before), ""
    try:
        while data := os.read(parent, 1 << 16):
            text = data.decode()
            written += text
            screen.feed(text)
            if "\a" in text:  # after which the command waits
                screen.columns = after
                _resize(parent, after)
    except OSError:  # how a pseudo-terminal ends
        pass
    assert process.wait() == 0, written
    os.close(parent)
    return screen, written


def _resize(terminal: int, columns: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
