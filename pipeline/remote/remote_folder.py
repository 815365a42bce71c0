"""Read and write the files of a remote folder through fsspec, with retries and one-line errors.

Timeouts, broken connections, HTTP 5xx and 429, and bodies of the wrong length are retried with exponential backoff;
refused credentials and missing files are not.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import xxhash

from mimcl.pipeline.files import DataError, atomic_file
from mimcl.pipeline.remote.clients import get_client
from mimcl.pipeline.remote.errors import (
    CREDENTIALS_HINTS,
    INVALID_CALL,
    NO_CREDENTIALS,
    RETRYABLE_STATUSES,
    is_caused_by,
    status_of,
)
from mimcl.pipeline.remote.retry import RETRY_POLICY
from mimcl.pipeline.remote.urls import is_http, joined, shown

T = TypeVar("T")

CHUNK = 8 << 20  # most bytes of a request, where the server supports ranges
CHECKSUM_ATTEMPTS = 3  # downloads with a wrong checksum before the remote file itself is considered wrong
_ETAG_KEYS = ("ETag", "etag", "blob_id", "xet_hash", "Last-Modified", "LastModified", "generation")


class Stat(NamedTuple):
    """Size and etag of a remote object; an object that changed has another size or etag."""

    size: int
    etag: str  # empty if the server gives none


class BadResponse(Exception):
    """The server's answer is not what was requested; the request is retried."""


class NotFound(DataError):
    """The remote file does not exist."""


class RemoteFolder:
    """The folder at a URL as returned by `urls.url_of`. Thread-safe; all methods raise DataError."""

    def __init__(self, url: str) -> None:
        """Make no connection yet. Raises DataError if the library for the scheme is not installed."""
        self.url, self.shown = url, shown(url)
        scheme = url.partition("://")[0].lower()
        self.kind = "http" if scheme == "https" else scheme
        self._policy = RETRY_POLICY
        self._client = get_client(self.kind, self._policy)
        self.activity = "starting"  # the latest request

    def stat(self, name: str, *, anew: bool = False) -> Stat:
        """Return size and etag; with `anew`, ignoring what the client has cached (hf:// does)."""

        def look_up() -> Stat:
            if anew:
                self._client.invalidate_cache(self._path(name))
            info = self._client.info(self._path(name))
            if not isinstance(info.get("size"), int):
                raise BadResponse("the server does not report the size")
            etag = next((str(info[key]) for key in _ETAG_KEYS if info.get(key)), "")
            return Stat(info["size"], etag)

        return self._retry(f"{name} stat", name, look_up)

    def exists(self, name: str) -> bool:
        try:
            self.stat(name)
        except NotFound:
            return False
        return True

    def fetch(self, name: str, start: int, stop: int, size: int) -> tuple[int, bytes]:
        """Return `start` and bytes [start, stop) of an object of `size` bytes.

        A server without range requests sends the whole object: then 0 and all bytes are returned.
        """
        path = self._path(name)
        options = {} if self._client.async_impl else {"cache_type": "none"}  # without it, blocking clients read ahead

        def get() -> tuple[int, bytes]:
            data = self._client.cat_file(path, start=start, end=stop, **options)
            if len(data) == stop - start:
                return start, data
            if len(data) == size:
                return 0, data
            raise BadResponse(f"received {len(data):,} bytes instead of {stop - start:,}")

        return self._retry(f"{name} {start} {stop}", name, get)

    def read_whole(self, name: str, max_bytes: int) -> bytes:
        """Return the content of a small file. Raises DataError if it has more than `max_bytes`."""
        size = self.stat(name).size
        if size > max_bytes:
            raise DataError(f"{self.address(name)} has {size:,} bytes, more than the limit of {max_bytes:,}")
        return self.fetch(name, 0, size, size)[1] if size else b""

    def download(self, name: str, path: Path, digest: str) -> None:
        """Download a file of any size to `path`, atomically. Raises DataError unless `digest` is its xxh128."""
        for attempt in range(CHECKSUM_ATTEMPTS):
            size, done, found = self.stat(name).size, 0, xxhash.xxh128()
            try:
                with atomic_file(path) as file:
                    while done < size:
                        begin, data = self.fetch(name, done, min(done + CHUNK, size), size)
                        data = data[done - begin :]
                        file.write(data)
                        found.update(data)
                        done += len(data)
                    if found.hexdigest() != digest:
                        raise BadResponse
            except BadResponse:
                time.sleep(self._policy.wait(f"{self.url} {name}", attempt))
            except OSError as error:
                raise DataError(
                    f"{path} cannot be written ({error.strerror}); free some space, or set MIMCL_CACHE to another "
                    "folder"
                ) from None
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

    def _retry(self, request: str, name: str, act: Callable[[], T]) -> T:
        """Call `act` until it returns or the policy is exhausted; `request` seeds the jitter of the waits."""
        self.activity = f"fetching {name}"
        policy, began, attempt = self._policy, time.monotonic(), 0
        while True:
            try:
                return act()
            except DataError:
                raise
            except Exception as error:
                self._raise_if_final(error, name)
                attempt += 1
                wait = policy.wait(f"{self.url} {request}", attempt - 1)
                elapsed = time.monotonic() - began
                if attempt >= policy.max_attempts or elapsed + wait > policy.total_timeout:
                    raise DataError(
                        f"{self.address(name)} could not be fetched in {attempt} attempts and {elapsed:.0f} s "
                        f"({self._reason(error)}); check the server and the network, then start again (a run with "
                        "--resume)"
                    ) from None
            time.sleep(wait)

    def _path(self, name: str) -> str:
        return self._client._strip_protocol(joined(self.url, name))

    def _raise_if_final(self, error: Exception, name: str) -> None:
        """Raise DataError for an error that a retry cannot fix."""
        where, status = self.address(name), status_of(error)
        if status in (401, 403):
            raise DataError(
                f"{where}: credentials refused (HTTP {status}), or the file does not exist; "
                f"{CREDENTIALS_HINTS[self.kind]}"
            ) from None
        if is_caused_by(error, NO_CREDENTIALS):
            raise DataError(
                f"{where}: no credentials ({self._reason(error)}); {CREDENTIALS_HINTS[self.kind]}"
            ) from None
        if status in (404, 410):
            raise NotFound(f"{where} not found (HTTP {status}); check the URL, or upload the file again") from None
        if status is not None and 300 <= status < 500 and status not in RETRYABLE_STATUSES:
            raise DataError(f"{where}: request refused ({self._reason(error)}); check the URL") from None
        if isinstance(error, INVALID_CALL) or is_caused_by(error, {"ParamValidationError"}):
            raise DataError(f"{where}: invalid request ({self._reason(error)}); check the URL") from None

    def _reason(self, error: BaseException) -> str:
        """Describe the error in one line, without the URL, which may contain secrets."""
        status = status_of(error)
        while error.__cause__ is not None:  # libraries wrap the original error
            error = error.__cause__
        text = " ".join(str(error).split())
        if status is not None and self.kind == "http":  # aiohttp's messages contain the URL
            return f"HTTP {status}"
        if self.url != self.shown:
            text = ""
        return f"{type(error).__name__}: {text:.200}".removesuffix(": ")


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
