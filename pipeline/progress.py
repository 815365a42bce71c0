"""What the stream's thread is at, for the error that says where it got stuck."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mimcl.pipeline.files import DataError


class StallError(DataError):
    """The consumer has waited for a batch for too long; the message names what the stream is stuck at."""


def _starting() -> str:
    return "starting"


@dataclass
class Stage:
    """`words` is replaced at every step of the stream's thread and called only when that step has stalled."""

    words: Callable[[], str] = _starting
