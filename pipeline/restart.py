"""An error that a new process with other environment variables may not meet; the command line starts one, once."""

from __future__ import annotations

from collections.abc import Mapping

from mimcl.pipeline.files import DataError


class RestartNeeded(DataError):
    """Something did not start that may start in a new process with other environment variables."""

    def __init__(self, message: str, environment: Mapping[str, str]) -> None:
        """`environment`: the variables to set, with their values."""
        super().__init__(message)
        self.environment = dict(environment)
