"""The error of something that may start in a new process with other environment variables."""

from __future__ import annotations

from collections.abc import Mapping

from mimcl.pipeline.files import DataError


class RestartNeeded(DataError):
    """Something did not start, but may in a new process with `environment` set; the command line tries that once."""

    def __init__(self, message: str, environment: Mapping[str, str]) -> None:
        super().__init__(message)
        self.environment = dict(environment)
