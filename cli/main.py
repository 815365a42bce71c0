"""The `mimcl` program: how it starts, reports errors and ends. The commands are in `app`."""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING, NoReturn

from mimcl.cli import interrupt
from mimcl.cli.windows import NEEDS_WSL2

if TYPE_CHECKING:
    from mimcl.pipeline.restart import RestartNeeded


def program() -> None:
    """Run `mimcl`: `main` in a process of its own."""
    if sys.platform == "win32":
        sys.exit(f"mimcl: {NEEDS_WSL2}")
    with interrupt.exit_at_once():  # while libraries are imported, and at exit
        from mimcl.cli.file_limit import raise_file_limit
        from mimcl.cli.screen import accept_any_text
        from mimcl.cli.threads import choose_threads

        raise_file_limit()
        choose_threads()
        accept_any_text()
        main()


def main() -> None:
    """Run a command and print errors as one line on stderr.

    Exit codes: 0 success, 1 failure, 2 bad usage, 75 stopped and saved, 130 interrupted.
    """
    with interrupt.raised() as interrupted:
        import typer

        from mimcl.cli.app import app
        from mimcl.cli.screen import wants_colour
        from mimcl.pipeline.restart import RestartNeeded

        if not (log := logging.getLogger("mimcl")).handlers:
            log.addHandler(_Warnings(logging.WARNING))
        arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
        debug = len(arguments) < len(sys.argv) - 1
        try:
            code = app(arguments, prog_name="mimcl", standalone_mode=False, color=wants_colour())
        except typer.TyperException as error:  # bad usage, raised by typer or by a command
            _print_error(error.format_message().replace(": Value error, ", ": ", 1))  # pydantic's words
            if context := getattr(error, "ctx", None):  # raised by typer
                print(f"Try '{context.command_path} --help' for help.", file=sys.stderr)
            code = error.exit_code
        except (KeyboardInterrupt, typer.Abort):
            code = interrupt.EXIT_CODE
        except RestartNeeded as error:
            from mimcl.model.distributed import is_connected

            if not is_connected():  # otherwise the other processes would lose this one
                _restart(error)
            _print_error(str(error))
            code = 1
        except Exception as error:
            if debug:
                raise
            if interrupted():  # some libraries turn a KeyboardInterrupt into another error
                code = interrupt.EXIT_CODE
            else:
                from mimcl.cli.suggest import advised

                _print_error(advised(error) or type(error).__name__)
                code = 1
        if code == interrupt.EXIT_CODE:  # typer may return this code instead of raising
            _print_error(interrupt.LINE)
    sys.exit(code if isinstance(code, int) else 0)


def _restart(error: RestartNeeded) -> NoReturn:
    """Replace this process by a new one with the same command and the environment variables that the error names."""
    settings = " ".join(f"{name}={value}" for name, value in error.environment.items())
    _print_error(f"{error}. Restarting with {settings}")
    sys.stdout.flush()
    sys.stderr.flush()
    os.environ.update(error.environment)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


class _Warnings(logging.Handler):
    """Prints the warnings of mimcl's modules, such as that a server asks to wait, as those of the command."""

    def emit(self, record: logging.LogRecord) -> None:
        from mimcl.cli.console import warn

        warn(record.getMessage())


def _print_error(message: str) -> None:
    from mimcl.cli.errors import with_remedy
    from mimcl.cli.screen import printable

    print("mimcl: " + printable(" ".join(with_remedy(message).split())), file=sys.stderr)


if __name__ == "__main__":
    program()
