"""Ctrl-C ends the program with exit code 130 and one line, whatever it is doing.

A KeyboardInterrupt within an import does not do that: extension modules turn it into an ImportError, and many libraries
go on without a module that raises one.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

EXIT_CODE = 130
LINE = "interrupted"
_UNFLUSHED = 120  # exit code of Python if its output cannot be written at exit
_IMPORT = "<frozen importlib._bootstrap>"  # file name of the import system's frames


@contextmanager
def exit_at_once() -> Iterator[None]:
    """Let Ctrl-C end the process at once, in the block and after it; after a failure, with the failure's exit code.

    The block is the whole program. Where Ctrl-C is ignored, as in a shell's background jobs, it stays so.
    """
    code: int | str | None = None
    atexit.register(lambda: _skip_finalization(code))  # registered first, called last
    _handle(_exit)
    try:
        yield
    except SystemExit as end:
        if code := end.code:
            _handle(lambda *_: os._exit(code if isinstance(code, int) else 1))
        raise
    except BaseException:
        code = 1
        raise


@contextmanager
def raised() -> Iterator[Callable[[], bool]]:
    """Let Ctrl-C raise KeyboardInterrupt in the block, but end the process at once in an import.

    Yields a function that returns whether Ctrl-C was pressed.
    """
    received = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal received
        received = True
        if _in_import(frame):
            _exit()
        raise KeyboardInterrupt

    with _handled(interrupt):
        yield lambda: received


@contextmanager
def raised_in_imports() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt in the block, in an import too, for a caller that catches every error."""
    with _handled(signal.default_int_handler):
        yield


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    before = _handle(handler)
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGINT, before)


def _handle(handler: Callable[[int, FrameType | None], object]) -> signal._HANDLER | None:
    """Set the handler and return the one before; None, changing nothing, where Ctrl-C is ignored or in a thread."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN or threading.current_thread() != threading.main_thread():
        return None
    return signal.signal(signal.SIGINT, handler)


def _in_import(frame: FrameType | None) -> bool:
    while frame:
        if frame.f_code.co_filename == _IMPORT:
            return True
        frame = frame.f_back
    return False


def _exit(*_: object) -> None:
    with suppress(Exception):  # such as the error of a write that was interrupted
        sys.stdout.flush()
    if sys.stdout and sys.stdout.isatty():  # a spinner hides the cursor
        os.write(sys.stdout.fileno(), b"\x1b[?25h")
    os.write(2, f"mimcl: {LINE}\n".encode())
    os._exit(EXIT_CODE)


def _skip_finalization(code: int | str | None) -> None:
    """End the process with an exit code, as `sys.exit` would.

    With large libraries, finalizing the interpreter takes tenths of a second, in which it runs no signal handlers.
    """
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except (OSError, ValueError):  # the disk is full, nobody reads it, or it is closed
            code = code or _UNFLUSHED
    os._exit(code if isinstance(code, int) else int(code is not None))
