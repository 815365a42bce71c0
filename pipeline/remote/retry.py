"""Timeouts and retries of requests to remote storage."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass

import xxhash


@dataclass(frozen=True)
class RetryPolicy:
    """Timeouts and waits in seconds. `total_timeout` is below data.stall_timeout, so that its error comes first."""

    connect_timeout: float = 20.0
    read_timeout: float = 60.0  # without receiving a byte
    max_attempts: int = 8
    total_timeout: float = 240.0  # no further attempt starts after this
    first_wait: float = 0.5
    max_wait: float = 30.0

    def wait(self, request: str, attempt: int) -> float:
        """Return the seconds to wait after an attempt (counted from 0): they double each time, up to `max_wait`.

        The jitter, a factor from 0.5 to 1.5, is a hash of host, rank and request: processes that failed together do
        not retry together.
        """
        process = f"{platform.node()} {os.environ.get('RANK', 0)}"
        jitter = 0.5 + xxhash.xxh64_intdigest(f"{process} {request} {attempt}".encode()) / 2**64
        return jitter * min(self.max_wait, self.first_wait * 2**attempt)


RETRY_POLICY = RetryPolicy()
