"""What the stream's thread is doing, for the error that says where it is stuck."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mimcl.pipeline.files import DataError


class StallError(DataError):
    """The consumer has waited too long for a batch; the message names what the stream is stuck at."""


def _starting() -> str:
    return "starting"


@dataclass
class Progress:
    """`activity` describes what the stream's thread is doing: replaced at every step, called only after a timeout."""

    activity: Callable[[], str] = _starting
