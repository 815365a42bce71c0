"""Read and write the files of a remote folder through fsspec, with retries and one-line errors.

Timeouts, broken connections, HTTP 5xx and 429, and bodies of the wrong length are retried with exponential backoff, or
once the pause is over that the server asks for; what no retry can change is not: refused credentials, missing files.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import xxhash

from mimcl.pipeline.files import DataError, atomic_file, remedy
from mimcl.pipeline.remote.clients import get_client
from mimcl.pipeline.remote.errors import NO_CONNECTION, is_caused_by
from mimcl.pipeline.remote.hub import HubFiles, server_of
from mimcl.pipeline.remote.pause import LONGEST_PAUSE_S, Pause, Paused, asked_pause_s
from mimcl.pipeline.remote.refusals import NotFound, reason_of, refusal
from mimcl.pipeline.remote.retry import RETRY_POLICY
from mimcl.pipeline.remote.urls import is_http, joined, shown

T = TypeVar("T")

CHUNK = 8 << 20  # most bytes of a request, where the server supports ranges
CHECKSUM_ATTEMPTS = 3  # downloads with a wrong checksum before the remote file itself is considered wrong
_log = logging.getLogger(__name__)
_ETAG_KEYS = ("ETag", "etag", "blob_id", "xet_hash", "Last-Modified", "LastModified", "generation")


class Stat(NamedTuple):
    """Size and etag of a remote object; an object that changed has another size or etag."""

    size: int
    etag: str  # empty if the server gives none


class BadResponse(Exception):
    """The server's answer is not what was requested; the request is retried."""


class RemoteFolder:
    """The folder at a URL as returned by `urls.url_of`. Thread-safe; all methods raise DataError."""

    def __init__(self, url: str) -> None:
        """Make no connection yet. Raises DataError if the library for the scheme is not installed."""
        self.url, self.shown = url, shown(url)
        scheme = url.partition("://")[0].lower()
        self.kind = "http" if scheme == "https" else scheme
        self._policy = RETRY_POLICY
        self._client = get_client(self.kind, self._policy)
        self._hub = HubFiles(self._client, self._policy) if self.kind == "hf" else None
        self._pause = self._hub.pause if self._hub else Pause(server_of(url))
        self._said_no_connection = False
        self.activity = "starting"  # the latest request

    def stat(self, name: str, *, anew: bool = False) -> Stat:
        """Return size and etag; with `anew`, ignoring what the client has cached (hf:// does)."""

        def look_up() -> Stat:
            if anew:
                self._client.invalidate_cache(self._path(name))
            info = self._client.info(self._path(name))
            if not isinstance(info.get("size"), int):
                raise DataError(
                    f"{self.address(name)}: the server reports no size (neither Content-Length nor Content-Range); use "
                    "a server that does, such as nginx or `python -m http.server`"
                )
            etag = next((str(info[key]) for key in _ETAG_KEYS if info.get(key)), "")
            return Stat(info["size"], etag)

        return self._retry(f"{name} stat", name, look_up)

    def exists(self, name: str) -> bool:
        try:
            self.stat(name)
        except NotFound:
            return False
        return True

    def fetch(self, name: str, start: int, stop: int, stat: Stat) -> tuple[int, bytes]:
        """Return `start` and bytes [start, stop) of an object.

        A server without range requests sends the whole object: then 0 and all bytes are returned.
        """
        path = self._path(name)
        options = {} if self._client.async_impl else {"cache_type": "none"}  # without it, blocking clients read ahead

        def get() -> tuple[int, bytes]:
            if self._hub:
                data = self._hub.read(path, start, stop, stat.etag)
            else:
                data = self._client.cat_file(path, start=start, end=stop, **options)
            if len(data) == stop - start:
                return start, data
            if len(data) == stat.size:
                return 0, data
            raise BadResponse(f"received {len(data):,} bytes instead of {stop - start:,}")

        # A pause of the hub is none of the storage behind it.
        return self._retry(f"{name} {start} {stop}", name, get, checks_pauses=self._hub is not None)

    def read_whole(self, name: str, max_bytes: int) -> bytes:
        """Return the present content of a small file. Raises DataError if it has more than `max_bytes`."""
        stat = self.stat(name, anew=True)
        if stat.size > max_bytes:
            raise DataError(f"{self.address(name)} has {stat.size:,} bytes, more than the limit of {max_bytes:,}")
        return self.fetch(name, 0, stat.size, stat)[1] if stat.size else b""

    def download(self, name: str, path: Path, digest: str) -> None:
        """Download a file of any size to `path`, atomically. Raises DataError unless `digest` is its xxh128."""
        for attempt in range(CHECKSUM_ATTEMPTS):
            stat, done, found = self.stat(name), 0, xxhash.xxh128()
            try:
                with atomic_file(path) as file:
                    while done < stat.size:
                        begin, data = self.fetch(name, done, min(done + CHUNK, stat.size), stat)
                        data = data[done - begin :]
                        file.write(data)
                        found.update(data)
                        done += len(data)
                    if found.hexdigest() != digest:
                        raise BadResponse
            except BadResponse:
                time.sleep(self._policy.wait(f"{self.url} {name}", attempt))
            except OSError as error:
                advice = remedy(error, "free some space, or set MIMCL_CACHE to another folder")
                raise DataError(f"{path} cannot be written ({error.strerror}); {advice}") from None
            else:
                return
        raise DataError(
            f"{self.address(name)}: its checksum differs from the data set's description; upload the file again"
        )

    def upload(self, path: Path, name: str) -> None:
        """Upload a local file."""
        self._retry(f"{name} upload", name, lambda: self._client.put_file(str(path), self._path(name)))

    def remove(self, name: str) -> None:
        """Remove a file if it exists."""
        if self.exists(name):
            self._retry(f"{name} remove", name, lambda: self._client.rm_file(self._path(name)))

    def address(self, name: str) -> str:
        """Return the URL of a file, without secrets."""
        return joined(self.shown, name)

    def _retry(self, request: str, name: str, act: Callable[[], T], checks_pauses: bool = False) -> T:
        """Call `act` until it returns or the policy is exhausted; `request` seeds the jitter of the waits.

        A pause that a server asks for counts neither as an attempt nor as part of its time. With `checks_pauses`, `act`
        raises Paused itself and extends pauses.
        """
        self.activity = f"fetching {name}"
        policy, began, attempt, paused = self._policy, time.monotonic(), 0, 0.0
        while True:
            try:
                if not checks_pauses:
                    self._pause.require_over()
                return act()
            except DataError:
                raise
            except Paused as error:
                if paused > LONGEST_PAUSE_S:
                    raise self._too_long(name, paused) from None
                slept = error.pause.wait()
                began, paused = began + slept, paused + slept
                continue
            except Exception as error:
                reason = reason_of(error, self.kind, self.url != self.shown)
                if final := refusal(error, self.kind, self.address(name), reason):
                    raise final from None
                if (asked := asked_pause_s(error)) is not None:
                    if asked > LONGEST_PAUSE_S:
                        raise self._too_long(name, asked) from None
                    if not checks_pauses:
                        self._pause.extend(asked)
                    continue
                attempt += 1
                wait = policy.wait(f"{self.url} {request}", attempt - 1)
                elapsed = time.monotonic() - began
                if attempt >= policy.max_attempts or elapsed + wait > policy.total_timeout:
                    raise DataError(
                        f"{self.address(name)} could not be fetched in {attempt} attempts and {elapsed:.0f} s "
                        f"({reason}); check the server and the network, then start again (a run with --resume)"
                    ) from None
                if is_caused_by(error, NO_CONNECTION) and not self._said_no_connection:
                    self._said_no_connection = True
                    _log.warning("%s: no connection (%s); retrying", self.address(name), reason)
            time.sleep(wait)

    def _too_long(self, name: str, seconds: float) -> DataError:
        return DataError(
            f"{self.address(name)}: the server asks to wait for {seconds:,.0f} s, more than {LONGEST_PAUSE_S:,.0f}; "
            "start again later (a run with --resume)"
        )

    def _path(self, name: str) -> str:
        return self._client._strip_protocol(joined(self.url, name))


def can_write(url: str) -> bool:
    """Whether the scheme supports uploads: http(s) does not. Credentials may still forbid it."""
    return not is_http(url)


def upload(folder: Path, url: str, last: str = "prototypes.json") -> None:
    """Upload the files of a folder to `url`/FOLDER-NAME/. Raises DataError.

    `last` is removed first and uploaded last, so that readers find either no set or a complete one.
    """
    remote = RemoteFolder(url)
    names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    remote.remove(f"{folder.name}/{last}")
    for name in sorted(names, key=lambda name: name == last):
        remote.upload(folder / name, f"{folder.name}/{name}")
