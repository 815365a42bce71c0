"""Errors that end a command: invalid or conflicting options, exhausted resources, and requests to stop."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from mimcl.pipeline.files import EXHAUSTED

STOPPED_EXIT_CODE = 75  # of a command that was asked to stop, and saved: "try again" in sysexits.h


class ConfigError(typer.TyperException):
    """A key or value of the configuration is invalid."""

    exit_code = 2


class Stopped(typer.TyperException):
    """A command was asked to stop, and saved what it had; its message, empty on ranks other than 0, says where."""

    exit_code = STOPPED_EXIT_CODE


def with_remedy(message: str) -> str:
    """Return an error's message with what to do about exhausted descriptors or memory, if it only names them.

    Libraries report them in errors of many kinds, but all in the system's words.
    """
    for number, remedy in EXHAUSTED.items():
        if os.strerror(number) in message:
            return message if remedy in message else f"{message}; {remedy}"
    return message


@contextmanager
def usage_errors() -> Iterator[None]:
    """Turn a ValueError of the block into a ConfigError."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(str(error)) from None
