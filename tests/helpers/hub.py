"""A stand-in for a model hub, in a process: its resolver redirects to signed addresses of a second server, the storage.

The resolver answers a limited number of requests in a window of time, as huggingface.co does.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import math
import re
import secrets
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

SETTINGS = {
    "counted": ".",  # paths of which the resolver counts the requests
    "limit": 3000,  # of such requests in a window
    "window_s": 300,
    "life_s": 3600,  # of a signed address
    "token": "",  # required if not empty
    "sent_by_hub": r"\.json$",  # paths that are not redirected, as small files are not
    "delay_s": 0,  # of the resolver
    "pauses": 0,  # answers of the storage that ask to wait for a second
}


class Hub:
    """The client of a stand-in at `url`."""

    def __init__(self, url: str) -> None:
        self.url = url

    def set(self, **settings: object) -> None:
        """Set SETTINGS (others get their defaults), begin a new window and clear the log."""
        self._ask("POST", json.dumps(SETTINGS | settings).encode())

    def revoke(self) -> None:
        """Let the storage refuse all addresses that were signed so far."""
        self._ask("PUT")

    def resolved(self, pattern: str = r"\.tar", status: int | None = None) -> list[dict]:
        """Return the resolver's requests with a matching path."""
        return [line for line in self._log("resolver", pattern) if status in (None, line["status"])]

    def stored(self, pattern: str = r"\.tar") -> list[dict]:
        """Return the storage's requests with a matching path."""
        return self._log("storage", pattern)

    def _log(self, server: str, pattern: str) -> list[dict]:
        lines = json.loads(self._ask("GET"))
        return [line for line in lines if line["server"] == server and re.search(pattern, line["path"])]

    def _ask(self, method: str, data: bytes | None = None) -> bytes:
        with urllib.request.urlopen(urllib.request.Request(f"{self.url}/__hub", data=data, method=method)) as answer:
            return answer.read()


@contextmanager
def started_hub(folder: Path) -> Iterator[Hub]:
    """Serve hf://datasets/user/set from a folder."""
    from helpers.servers import run_server  # not above, since the server runs this file as a program

    with run_server(__file__, str(folder)) as url:
        yield Hub(url)


def use_hub(patch: pytest.MonkeyPatch, url: str) -> None:
    """Let this process, and those that it starts, use the hub at `url`, without a token."""
    from huggingface_hub import constants

    patch.setenv("HF_ENDPOINT", url)
    patch.setenv("HF_HUB_OFFLINE", "0")
    patch.delenv("HF_TOKEN", raising=False)
    # What the library read from the environment when it was imported.
    patch.setattr(constants, "HF_TOKEN_PATH", "/nonexistent")
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(constants, "ENDPOINT", url)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


async def serve(folder: str) -> None:
    from aiohttp import web

    root, api, settings = Path(folder), "/api/datasets/user/set", dict(SETTINGS)
    blobs = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    log: list[dict] = []
    window = {"ends": 0.0, "left": 0}
    key = [secrets.token_bytes(16)]

    def note(request: web.Request, server: str, path: str, answer: web.StreamResponse) -> web.StreamResponse:
        credentials = request.headers.get("Authorization", "")
        known = {"server": server, "path": path, "status": answer.status, "authorization": credentials}
        log.append(known | {"range": request.headers.get("Range"), "time": time.time()})
        return answer

    def signature(path: str, expires: str) -> str:
        return hmac.new(key[0], f"{path} {expires}".encode(), "sha256").hexdigest()

    def entry(path: Path) -> dict:
        known = {"path": path.relative_to(root).as_posix(), "type": "directory", "oid": "0" * 40, "size": 0}
        if path.is_dir():
            return known
        digest = hashlib.sha1(path.read_bytes()).hexdigest()
        return known | {"type": "file", "oid": digest, "size": path.stat().st_size}

    async def listed(request: web.Request) -> web.Response:
        path = root / request.match_info["path"].strip("/")
        if not path.is_dir():
            return web.json_response({}, status=404, headers={"X-Error-Code": "EntryNotFound"})
        return web.json_response([entry(below) for below in sorted(path.iterdir())])

    async def described(request: web.Request) -> web.Response:
        return web.json_response({"id": "user/set", "sha": "0" * 40, "tags": [], "siblings": []})

    async def resolve(request: web.Request) -> web.StreamResponse:
        path = request.match_info["path"]
        await asyncio.sleep(settings["delay_s"])
        return note(request, "resolver", path, answer_of(request, path))

    def answer_of(request: web.Request, path: str) -> web.StreamResponse:
        if settings["token"] and request.headers.get("Authorization") != f"Bearer {settings['token']}":
            return web.Response(status=401)
        if time.time() >= window["ends"]:
            window.update(ends=time.time() + settings["window_s"], left=settings["limit"])
        if re.search(settings["counted"], path):
            window["left"] -= 1
        rate = f'"resolvers";r={max(window["left"], 0)};t={math.ceil(window["ends"] - time.time())}'
        headers = {
            "RateLimit": rate,
            "RateLimit-Policy": f'"fixed window";"resolvers";q={settings["limit"]};w={settings["window_s"]}',
        }
        if window["left"] < 0 and re.search(settings["counted"], path):
            return web.Response(status=429, headers=headers)
        if not (root / path).is_file():
            return web.Response(status=404, headers=headers | {"X-Error-Code": "EntryNotFound"})
        if re.search(settings["sent_by_hub"], path):
            return web.FileResponse(root / path, headers=headers)
        content = (root / path).read_bytes()
        blob = Path(blobs.name) / hashlib.sha1(content).hexdigest()  # as the hub's storage, which keeps old versions
        blob.write_bytes(content)
        expires = str(math.ceil(time.time()) + settings["life_s"])
        path = f"{blob.name}/{path}"
        where = f"{storage}/{path}?Expires={expires}&Signature={signature(path, expires)}"
        return web.Response(status=302, headers=headers | {"Location": where})

    async def stored(request: web.Request) -> web.StreamResponse:
        path, query = request.path.lstrip("/"), request.query
        signed = query.get("Signature") == signature(path, query.get("Expires", ""))
        answer: web.StreamResponse
        if not signed or time.time() > int(query["Expires"]):
            answer = web.Response(status=403)
        elif settings["pauses"] > 0:
            settings["pauses"] -= 1
            answer = web.Response(status=503, headers={"Retry-After": "1"})
        else:
            answer = web.FileResponse(Path(blobs.name) / path.partition("/")[0])
        return note(request, "storage", path, answer)

    async def control(request: web.Request) -> web.Response:
        if request.method == "GET":
            return web.json_response(log)
        if request.method == "PUT":
            key[0] = secrets.token_bytes(16)
        else:
            settings.update(await request.json())
            window.update(ends=0.0)
            log.clear()
        return web.Response()

    hub, cdn = web.Application(), web.Application()
    hub.router.add_route("*", "/__hub", control)
    hub.router.add_get(api + "/tree/main{path:.*}", listed)
    hub.router.add_get("/datasets/user/set/resolve/main/{path:.*}", resolve)
    hub.router.add_get(api, described)
    hub.router.add_get(api + "/revision/main", described)
    cdn.router.add_get("/{path:.*}", stored)
    ports = []
    for app in (hub, cdn):
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        ports.append(site._server.sockets[0].getsockname()[1])
    storage = f"http://127.0.0.1:{ports[1]}"
    print(ports[0], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
