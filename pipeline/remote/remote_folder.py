"""Files of a folder elsewhere, through fsspec: fetched patiently, or refused in one line that says why.

Time-outs, broken connections, HTTP 5xx and 429 and bodies of the wrong length are tried again, after waits that double
and jitter; refused credentials and missing files are not.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import xxhash

from mimcl.pipeline.files import DataError, atomic_file
from mimcl.pipeline.remote.clients import client_of
from mimcl.pipeline.remote.errors import MEND, NO_CREDENTIALS, OUR_FAULT, TRY_AGAIN, is_one_of, status_of
from mimcl.pipeline.remote.retry import PATIENCE
from mimcl.pipeline.remote.urls import is_http, joined, shown

T = TypeVar("T")

CHUNK = 8 << 20  # bytes of a request at most, as far as it is for us to say
ARRIVALS = 3  # of wrong bytes, after which they are what lies there


class Stat(NamedTuple):
    """What an object is: another size or etag, another object."""

    size: int
    etag: str  # empty where the server has none


class Unsuitable(Exception):
    """What came is not what was asked for."""


class RemoteFolder:
    """The folder at a URL, as `urls.url_of` returned it. Any number of threads may use it."""

    def __init__(self, url: str) -> None:
        """Contacts nobody. Raises DataError when the library for the scheme is missing."""
        self.url, self.shown = url, shown(url)
        scheme = url.partition("://")[0].lower()
        self.kind = "http" if scheme == "https" else scheme
        self._patience = PATIENCE
        self._files = client_of(self.kind, self._patience)

    def stat(self, name: str, *, anew: bool = False) -> Stat:
        """With `anew` as it is now: the library for hf:// remembers what it found.

        Raises DataError, as all methods here do: missing, refused, or not to be had within our patience.
        """

        def look() -> Stat:
            if anew:
                self._files.invalidate_cache(self._path(name))
            info = self._files.info(self._path(name))
            if not isinstance(info.get("size"), int):
                raise Unsuitable("the server does not say how large it is")
            marks = ("ETag", "etag", "blob_id", "xet_hash", "Last-Modified", "LastModified", "generation")
            etag = next((str(info[mark]) for mark in marks if info.get(mark)), "")
            return Stat(info["size"], etag)

        return self.patiently(f"{name} stat", name, look)

    def exists(self, name: str) -> bool:
        try:
            self.stat(name)
        except Missing:
            return False
        return True

    def fetch(self, name: str, start: int, stop: int, size: int) -> tuple[int, bytes]:
        """Bytes [start, stop) of an object of `size` bytes, and `start`; all of them, and 0, from a server that
        knows no ranges.
        """
        path = self._path(name)

        def get() -> tuple[int, bytes]:
            if self._files.async_impl:
                data = self._files.cat_file(path, start=start, end=stop)
            else:  # which would read ahead
                data = self._files.cat_file(path, start=start, end=stop, cache_type="none")
            if len(data) == stop - start:
                return start, data
            if len(data) == size:
                return 0, data
            raise Unsuitable(f"{len(data):,} bytes came in place of {stop - start:,}")

        return self.patiently(f"{name} {start} {stop}", name, get)

    def whole(self, name: str, most: int) -> bytes:
        """A small file. Raises DataError where it has more than `most` bytes."""
        size = self.stat(name).size
        if size > most:
            raise DataError(f"{self.at(name)} has {size:,} bytes, more than the {most:,} that it may have")
        return self.fetch(name, 0, size, size)[1] if size else b""

    def download(self, name: str, path: Path, digest: str) -> None:
        """A file of any size, which appears at `path` only as a whole and with this xxh128."""
        for attempt in range(ARRIVALS):
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
                        raise Unsuitable
            except Unsuitable:
                time.sleep(self._patience.wait(f"{self.url} {name}", attempt))
            except OSError as error:
                raise DataError(
                    f"{path} cannot be written ({error.strerror}); make room, or name another folder in MIMCL_CACHE"
                ) from None
            else:
                return
        raise DataError(
            f"{self.at(name)} is not the file that the data set's description tells of: its checksum differs; "
            "upload it again"
        )

    def upload(self, path: Path, name: str) -> None:
        """Puts a local file there."""
        self.patiently(f"{name} upload", name, lambda: self._files.put_file(str(path), self._path(name)))

    def remove(self, name: str) -> None:
        """Removes a file if it is there."""
        if self.exists(name):
            self.patiently(f"{name} remove", name, lambda: self._files.rm_file(self._path(name)))

    def at(self, name: str) -> str:
        """The address of a file, without secrets."""
        return joined(self.shown, name)

    def patiently(self, what: str, name: str, act: Callable[[], T]) -> T:
        """What `act` returns, in the end; `what` tells waits apart. Raises DataError."""
        patience, began, attempt = self._patience, time.monotonic(), 0
        while True:
            try:
                return act()
            except DataError:
                raise
            except Exception as error:
                self._raise_final(error, name)
                attempt += 1
                wait = patience.wait(f"{self.url} {what}", attempt - 1)
                waited = time.monotonic() - began
                if attempt >= patience.attempts or waited + wait > patience.total:
                    raise DataError(
                        f"{self.at(name)} could not be had in {attempt} attempts and {waited:.0f} seconds "
                        f"({self._reason(error)}); look at the server and the network, then start again (a "
                        "run that had begun with --resume)"
                    ) from None
            time.sleep(wait)

    def _path(self, name: str) -> str:
        return self._files._strip_protocol(joined(self.url, name))

    def _raise_final(self, error: Exception, name: str) -> None:
        """Raises the DataError of what no further attempt would mend."""
        where, status = self.at(name), status_of(error)
        if status in (401, 403):
            raise DataError(
                f"{where}: credentials refused (HTTP {status}), or nothing of this name may be seen; {MEND[self.kind]}"
            ) from None
        if is_one_of(error, NO_CREDENTIALS):
            raise DataError(f"{where}: no credentials ({self._reason(error)}); {MEND[self.kind]}") from None
        if status in (404, 410):
            raise Missing(f"{where} is not there (HTTP {status}); look at the address, or upload it again") from None
        if status is not None and 300 <= status < 500 and status not in TRY_AGAIN:
            raise DataError(f"{where} was refused ({self._reason(error)}); look at the address") from None
        if isinstance(error, OUR_FAULT) or is_one_of(error, {"ParamValidationError"}):
            raise DataError(f"{where} cannot be asked for ({self._reason(error)}); look at the address") from None

    def _reason(self, error: BaseException) -> str:
        """In a line, without the URL, which may hold secrets."""
        status = status_of(error)
        while error.__cause__ is not None:  # libraries wrap what really happened
            error = error.__cause__
        text = " ".join(str(error).split())
        if status is not None and self.kind == "http":  # aiohttp's texts hold the URL
            return f"HTTP {status}"
        if self.url != self.shown:
            text = ""
        return f"{type(error).__name__}: {text:.200}".removesuffix(": ")


class Missing(DataError):
    """There is no such file."""


def can_write(url: str) -> bool:
    """Whether files can be put there at all: a web server only serves. Credentials may still say no."""
    return not is_http(url)


def upload(folder: Path, url: str, last: str = "prototypes.json") -> None:
    """Puts the files of a folder under `url`/NAME-OF-FOLDER/, `last` after all others and gone before they change.

    So whoever reads meanwhile finds either no set, or a whole one. Raises DataError.
    """
    remote = RemoteFolder(url)
    names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    remote.remove(f"{folder.name}/{last}")
    for name in sorted(names, key=lambda name: name == last):
        remote.upload(folder / name, f"{folder.name}/{name}")
