"""Pauses that servers ask for: until one is over, no thread and no process of this machine sends that server requests.

A server asks by HTTP 429 or 503 with a Retry-After header, a model hub also by RateLimit headers: its limits count all
requests in a window of some minutes, so that retries of a few seconds would only be refused again.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import xxhash

from mimcl.pipeline.cache_dir import cache_dir
from mimcl.pipeline.remote.errors import causes, status_of

LONGEST_PAUSE_S = 1800.0  # that a request waits, all pauses together

_log = logging.getLogger(__name__)
_RATE_LIMIT = re.compile(r"\br\s*=\s*(\d+)\s*;\s*t\s*=\s*(\d+)")  # of the IETF's draft: requests left, seconds to reset
_guard = threading.Lock()
_until: dict[str, float] = {}  # time.time() by server, of this process
_announced: set[str] = set()
_latest = -float("inf")  # time.monotonic() at which the last pause of this process ends


class Pause:
    """The pause of one server, such as "https://host:port" or "s3://bucket"."""

    def __init__(self, server: str) -> None:
        self.server = server
        self._path = cache_dir() / "pauses" / xxhash.xxh128_hexdigest(server.encode())

    def left_s(self) -> float:
        """Return the seconds that are left, 0 without a pause."""
        until = _until.get(self.server, 0.0)
        with suppress(OSError):  # none yet
            until = max(until, os.stat(self._path).st_mtime)
        left = until - time.time()
        return left if 0 < left <= LONGEST_PAUSE_S else 0.0  # longer: the clock was wrong

    def require_over(self) -> None:
        """Raise Paused until it is over."""
        if self.left_s():
            raise Paused(self)

    def extend(self, seconds: float) -> None:
        """Send nothing for that many seconds; the process that begins a server's pauses logs the first one.

        Longer than the longest is ignored: it is an error of the request.
        """
        global _latest
        if seconds > LONGEST_PAUSE_S:
            return
        with _guard:
            is_news = seconds > self.left_s() + 1 and self.server not in _announced
            if is_news:
                _announced.add(self.server)
            until = _until[self.server] = max(time.time() + seconds, _until.get(self.server, 0.0))
            _latest = max(_latest, time.monotonic() + seconds)
            with suppress(OSError):  # a full or read-only disk: then the threads of this process wait together
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._path.touch()
                os.utime(self._path, (until, until))
        if is_news:
            _log.warning("%s asks to wait %.0f s before the next request; waiting", self.server, seconds)

    def wait(self) -> float:
        """Sleep for the time that is left, and return it in seconds; meanwhile it may have been extended."""
        global _latest
        left = self.left_s()
        with _guard:
            _latest = max(_latest, time.monotonic() + left)
        time.sleep(left)
        return left


class Paused(Exception):
    """No request was sent, since a server has asked to wait."""

    def __init__(self, pause: Pause) -> None:
        super().__init__(pause.server)
        self.pause = pause


def paused_until() -> float:
    """Return when the last pause of this process ends or ended: time.monotonic(), -inf without one."""
    return _latest


def asked_pause_s(error: BaseException) -> float | None:
    """Return how many seconds the server behind an error asks to wait; None if it does not, or not for a second."""
    status = status_of(error)
    if status not in (429, 503):
        return None
    headers = _headers_of(error)
    seconds = None
    found = _RATE_LIMIT.search(headers.get("ratelimit", ""))
    if found and status == 429 and found[1] == "0":  # the header is sent with every answer
        seconds = float(found[2]) + 1  # the rest of a second
    elif after := headers.get("retry-after", "").strip():
        if after.isdigit():
            seconds = float(after)
        else:
            with suppress(ValueError, TypeError):
                seconds = (parsedate_to_datetime(after).astimezone(UTC) - datetime.now(UTC)).total_seconds()
    return seconds if seconds is not None and seconds >= 1 else None


def _headers_of(error: BaseException) -> dict[str, str]:
    """Return the headers of the answer behind an error, with names in lower case."""
    for cause in causes(error):
        response = getattr(cause, "response", None)
        if isinstance(response, dict):  # botocore
            headers = response.get("ResponseMetadata", {}).get("HTTPHeaders")
        else:
            headers = getattr(response, "headers", None) or getattr(cause, "headers", None)
        if isinstance(headers, Mapping):
            return {str(name).lower(): str(value) for name, value in headers.items()}
    return {}
