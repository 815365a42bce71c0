"""Read files of a model hub within its limit of requests: its resolver is asked once for each file's address.

The resolver redirects to a signed address in the storage behind the hub, which the hub's limit does not count. The
address is reused, by all threads and processes of this machine, until it expires. It needs no credentials: those are
sent to the hub only. A file that the hub sends itself, such as a small one, costs one of its requests for each read.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import xxhash

from mimcl.pipeline.cache_dir import cache_dir
from mimcl.pipeline.files import atomic_file
from mimcl.pipeline.folder_lock import FolderLock
from mimcl.pipeline.remote.pause import Pause, asked_pause_s
from mimcl.pipeline.remote.retry import RetryPolicy
from mimcl.pipeline.remote.signed_address import Address, expiry_of, signed_address

_MAX_REDIRECTS = 8
_REFUSED = {400, 401, 403, 404, 410}  # answers to an address that has expired


class HubFiles:
    """Reads byte ranges of the files of a hub. Thread-safe."""

    def __init__(self, client: Any, policy: RetryPolicy) -> None:
        """`client` is the hub's fsspec file system."""
        self._client, self._policy = client, policy
        self.pause = Pause(server_of(client.endpoint))
        self._addresses: dict[str, Address] = {}  # by key
        self._sent_by_hub: set[str] = set()  # keys

    def read(self, path: str, start: int, stop: int, etag: str) -> bytes:
        """Return the bytes of a range, or all if the server does not support ranges.

        Files that differ in `etag` are different files. Raises Paused, and the libraries' errors.
        """
        url = self._client.url(path)
        key = xxhash.xxh128_hexdigest(f"{url}\n{etag}".encode())
        span = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        if (address := _valid(self._addresses.get(key))) is not None:
            answer = self._get(address, span)
            if answer.status_code not in _REFUSED:
                return self._content(answer)
        found = self._ask(url, span) if key in self._sent_by_hub else self._resolve(key, url, span, refused=address)
        return self._content(self._get(found, span)) if isinstance(found, Address) else found

    def _resolve(self, key: str, url: str, span: dict[str, str], refused: Address | None) -> Address | bytes:
        """Return the address of a file, another one than `refused`; or the range, if the hub sends it itself.

        One thread of one process at a time asks for a file's address.
        """
        folder = cache_dir() / "addresses" / key
        with suppress(OSError):  # without the folder, each thread asks for itself
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(folder, self._policy.total_timeout):
            for known in (self._addresses.get(key), _load(folder)):
                if (address := _valid(known)) and address != refused:
                    self._addresses[key] = address
                    return address
            found = self._ask(url, span)
            if isinstance(found, Address):
                self._addresses[key] = found
                _save(folder, found)
            else:
                self._sent_by_hub.add(key)
            return found

    def _ask(self, url: str, span: dict[str, str]) -> Address | bytes:
        """Ask the resolver for a range of a file: return the address that it redirects to, or the range."""
        from huggingface_hub.utils import build_hf_headers, get_session

        self.pause.require_over()
        client = get_session()
        headers = build_hf_headers(token=self._client.token, headers=span)
        request = client.build_request("GET", url, headers=headers, timeout=self._timeout())
        for _ in range(_MAX_REDIRECTS):
            answer = client.send(request, stream=True, follow_redirects=False)
            try:
                following = answer.next_request
                if following is None:
                    answer.read()
                    return self._content(answer)
            finally:
                answer.close()
            to = str(following.url)
            is_resolver = server_of(to) == server_of(url) or "/resolve/" in urlsplit(to).path  # a mirror redirects too
            if not is_resolver or expiry_of(to, 0) is not None:
                return signed_address(to, answer.headers)
            request = following
        raise ConnectionError(f"more than {_MAX_REDIRECTS} redirects")

    def _get(self, address: Address, span: dict[str, str]) -> Any:
        """Return the storage's answer to the request for a range; no credentials are sent."""
        from huggingface_hub.utils import get_session

        Pause(server_of(address.url)).require_over()
        return get_session().request("GET", address.url, headers=span, timeout=self._timeout())

    def _content(self, answer: Any) -> bytes:
        """Return the body. Raises the library's error for a status above 399; pauses if the server asks for it."""
        from huggingface_hub.utils import hf_raise_for_status

        try:
            hf_raise_for_status(answer)
        except Exception as error:
            if (seconds := asked_pause_s(error)) is not None:  # at once: other threads wait for this one's lock
                Pause(server_of(str(answer.url))).extend(seconds)
            raise
        return bytes(answer.content)

    def _timeout(self) -> tuple[float, float, float, float]:
        """Timeouts of connect, read, write and pool, in seconds."""
        connect, others = self._policy.connect_timeout, self._policy.read_timeout
        return connect, others, others, others


def server_of(url: str) -> str:
    """Return scheme, host and port of a URL, without a user's name and password."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}".lower()


def _valid(address: Address | None) -> Address | None:
    return address if address and time.time() < address.expires else None


@contextmanager
def _locked(folder: Path, timeout_s: float) -> Iterator[None]:
    """Lock the folder, if that is possible within `timeout_s` seconds; without it, only more requests are made."""
    try:
        lock = FolderLock(folder)
    except OSError:
        yield
        return
    with lock:
        lock.acquire(timeout_s)
        yield


def _load(folder: Path) -> Address | None:
    try:
        url, expires = json.loads((folder / "address.json").read_bytes())
        return Address(str(url), float(expires))
    except (OSError, ValueError, TypeError):
        return None


def _save(folder: Path, address: Address) -> None:
    with suppress(OSError), atomic_file(folder / "address.json") as file:  # the folder is readable by its owner only
        file.write(json.dumps(address).encode())
