"""Servers on 127.0.0.1, each in a process: files with ranges, S3, and a proxy that injects faults."""

from __future__ import annotations

import asyncio
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
    """Run this file with `files FOLDER`, `s3` or `proxy URL`; yield its URL at a free port."""
    with run_server(__file__, *arguments) as url:
        yield url


@contextmanager
def run_server(file: str, *arguments: str) -> Iterator[str]:
    """Run a file that prints its port on 127.0.0.1, and yield the URL."""
    process = subprocess.Popen([sys.executable, file, *arguments], stdout=subprocess.PIPE, text=True)
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

        A rule has `path`, a regular expression to search for; `what`: delay (by `value` seconds), status (`value`, with
        the `headers`), reset (in the middle of a body), truncate (the body ends early), short (less than requested,
        without saying so), corrupt, whole (ranges are ignored), endless (no length is given), etag (another one);
        `times` (default: always); `method` (default: any).
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
        harm = list(harm_of(request))
        chosen = {rule["what"]: rule.get("value") for rule in harm}
        if "delay" in chosen:
            await asyncio.sleep(chosen["delay"])
        if "status" in chosen:
            line["status"] = chosen["status"]
            return web.Response(status=chosen["status"], headers=harm[-1].get("headers"))
        headers = {key: value for key, value in request.headers.items() if key.lower() not in HOP_BY_HOP}
        if {"whole", "endless"} & chosen.keys():
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
        if "endless" in chosen:
            response.enable_chunked_encoding()
        else:
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
    {"files": files, "s3": s3, "proxy": proxy}[sys.argv[1]](*sys.argv[2:])
