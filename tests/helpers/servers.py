"""Servers on 127.0.0.1, each in a process: files with ranges, S3, a hub, and a proxy that injects faults."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "content-encoding"}


@contextmanager
def started(*arguments: str) -> Iterator[str]:
    """Run this file with `files FOLDER`, `s3`, `hub FOLDER` or `proxy URL`; yield its URL at a free port."""
    process = subprocess.Popen([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.wait()


class Proxy:
    """The client of a proxy that injects faults."""

    def __init__(self, url: str) -> None:
        self.url = url

    def inject(self, *rules: dict) -> None:
        """Set the faults, and clear the log of requests.

        A rule has `path`, a regular expression to search for; `what`: delay (by `value` seconds), status (`value`),
        reset (in the middle of a body), truncate (the body ends early), short (less than requested, without saying
        so), corrupt, whole (ranges are ignored), etag (another one); `times` (default: always);
        `method` (default: any).
        """
        self._ask("POST", json.dumps(rules).encode())

    def requests(self, pattern: str = r"\.tar") -> list[dict]:
        """Return the requests with a matching path: path, method, range, status, and bytes sent."""
        return [line for line in json.loads(self._ask("GET")) if re.search(pattern, line["path"])]

    def sent(self, pattern: str = r"\.tar") -> int:
        return sum(line["bytes"] for line in self.requests(pattern) if line["method"] == "GET")

    def _ask(self, method: str, data: bytes | None = None) -> bytes:
        request = urllib.request.Request(f"{self.url}/__proxy", data=data, method=method)
        with urllib.request.urlopen(request) as answer:
            return answer.read()


async def _serve(handler) -> None:
    from aiohttp import web

    server = web.AppRunner(handler)
    await server.setup()
    site = web.TCPSite(server, "127.0.0.1", 0)
    await site.start()
    print(site._server.sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()


def files(folder: str) -> None:
    from aiohttp import web

    async def handle(request: web.Request) -> web.StreamResponse:
        path = Path(folder) / request.path.lstrip("/")
        return web.FileResponse(path) if path.is_file() else web.Response(status=404)

    app = web.Application()
    app.router.add_get("/{tail:.*}", handle)
    asyncio.run(_serve(app))


def s3() -> None:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    print(server.get_host_and_port()[1], flush=True)
    server._thread.join()


def hub(folder: str) -> None:
    """Serve what hf://datasets/user/set needs of a model hub."""
    from aiohttp import web

    root, api = Path(folder), "/api/datasets/user/set"

    def entry(path: Path) -> dict:
        known = {"path": path.relative_to(root).as_posix(), "type": "directory", "oid": "0" * 40, "size": 0}
        if path.is_dir():
            return known
        return known | {
            "type": "file",
            "oid": hashlib.sha1(path.read_bytes()).hexdigest(),
            "size": path.stat().st_size,
        }

    async def listed(request: web.Request) -> web.Response:
        path = root / request.match_info["path"].strip("/")
        if not path.is_dir():
            return web.json_response({}, status=404, headers={"X-Error-Code": "EntryNotFound"})
        return web.json_response([entry(below) for below in sorted(path.iterdir())])

    async def sent(request: web.Request) -> web.StreamResponse:
        path = root / request.match_info["path"]
        return web.FileResponse(path) if path.is_file() else web.Response(status=404)

    async def described(request: web.Request) -> web.Response:
        return web.json_response({"id": "user/set", "sha": "0" * 40, "tags": [], "siblings": []})

    app = web.Application()
    app.router.add_get(api + "/tree/main{path:.*}", listed)
    app.router.add_get("/datasets/user/set/resolve/main/{path:.*}", sent)
    app.router.add_get(api, described)
    app.router.add_get(api + "/revision/main", described)
    asyncio.run(_serve(app))


def proxy(url: str) -> None:
    import aiohttp
    import yarl
    from aiohttp import web

    rules: list[dict] = []
    log: list[dict] = []

    async def control(request: web.Request) -> web.Response:
        if request.method == "GET":
            return web.json_response(log)
        rules[:] = await request.json()
        log.clear()
        return web.Response()

    def harm_of(request: web.Request) -> Iterator[dict]:
        for rule in rules:
            fits = re.search(rule["path"], request.path) and rule.get("method", request.method) == request.method
            if fits and rule.get("times", 1) > 0:
                if "times" in rule:
                    rule["times"] -= 1
                yield rule
                if rule["what"] in ("status", "reset", "truncate", "short"):
                    return

    async def handle(request: web.Request) -> web.StreamResponse:
        line = {"path": request.path, "method": request.method, "range": request.headers.get("Range"), "bytes": 0}
        log.append(line)
        chosen = {rule["what"]: rule.get("value") for rule in harm_of(request)}
        if "delay" in chosen:
            await asyncio.sleep(chosen["delay"])
        if "status" in chosen:
            line["status"] = chosen["status"]
            return web.Response(status=chosen["status"])
        headers = {key: value for key, value in request.headers.items() if key.lower() not in HOP_BY_HOP}
        if "whole" in chosen:
            headers.pop("Range", None)
        address = yarl.URL(url + request.raw_path, encoded=True)
        body = await request.read()
        async with client[0].request(request.method, address, headers=headers, data=body) as answer:
            data = await answer.read()
            line["status"] = answer.status
            kept = {key: value for key, value in answer.headers.items() if key.lower() not in HOP_BY_HOP}
            length = answer.headers.get("Content-Length", str(len(data)))
        if "etag" in chosen:
            kept = {key: value for key, value in kept.items() if key.lower() != "etag"} | {"ETag": '"another"'}
        if "corrupt" in chosen and data:
            data = data[:-9] + bytes([data[-9] ^ 255]) + data[-8:]
        if "short" in chosen:
            data, length = data[: len(data) // 2], str(len(data) // 2)
        response = web.StreamResponse(status=line["status"], headers=kept)
        response.content_length = int(length)
        await response.prepare(request)
        if request.method == "HEAD":
            return response
        part = len(data) // 2 if "reset" in chosen or "truncate" in chosen else len(data)
        line["bytes"] = part
        await response.write(data[:part])
        if "reset" in chosen:
            request.transport.abort()
        elif "truncate" in chosen:
            request.transport.close()
        else:
            await response.write_eof()
        return response

    client: list[aiohttp.ClientSession] = []

    async def run() -> None:
        unlimited = aiohttp.TCPConnector(limit=0)
        client.append(aiohttp.ClientSession(connector=unlimited, auto_decompress=False))
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/__proxy", control)
        app.router.add_route("*", "/{tail:.*}", handle)
        await _serve(app)

    asyncio.run(run())


if __name__ == "__main__":
    {"files": files, "s3": s3, "hub": hub, "proxy": proxy}[sys.argv[1]](*sys.argv[2:])
