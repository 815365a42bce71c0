"""How long to wait for servers, and between attempts."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass

import xxhash


@dataclass(frozen=True)
class Patience:
    """How long is waited, in seconds. All of it together is less than data.stall_timeout, so that its error wins."""

    connect: float = 20.0  # until a server is reached
    read: float = 60.0  # for the next bytes
    attempts: int = 8
    total: float = 240.0  # after which no further attempt begins
    first_wait: float = 0.5
    longest_wait: float = 30.0

    def wait(self, what: str, attempt: int) -> float:
        """Between half and one and a half of a time that doubles: by a hash, so that processes do not come together."""
        who = f"{platform.node()} {os.environ.get('RANK', 0)}"
        jitter = 0.5 + xxhash.xxh64_intdigest(f"{who} {what} {attempt}".encode()) / 2**64
        return jitter * min(self.longest_wait, self.first_wait * 2**attempt)


PATIENCE = Patience()
