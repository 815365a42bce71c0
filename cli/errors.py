"""Errors that end a command: invalid or conflicting options, and requests to stop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

STOPPED_EXIT_CODE = 75  # of a command that was asked to stop, and saved: "try again" in sysexits.h


class ConfigError(typer.TyperException):
    """A key or value of the configuration is invalid."""

    exit_code = 2


class Stopped(typer.TyperException):
    """A command was asked to stop, and saved what it had; its message, empty on ranks other than 0, says where."""

    exit_code = STOPPED_EXIT_CODE


@contextmanager
def usage_errors() -> Iterator[None]:
    """Turn a ValueError of the block into a ConfigError."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(str(error)) from None
