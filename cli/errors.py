"""Bad usage: options, keys or values that are wrong or do not go together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer


class ConfigError(typer.TyperException):
    """A key or value of the configuration is wrong: bad usage."""

    exit_code = 2


@contextmanager
def usage_errors() -> Iterator[None]:
    """Values that do not go together are bad usage, wherever that is noticed."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(str(error)) from None
