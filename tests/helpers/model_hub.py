"""A stand-in for a hub's model repositories, in a process: they are created, uploaded to and read from.

Weights go to the storage of large files (Git LFS), other files into the commit, as on huggingface.co without Xet.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

TOKEN = "hf_secret"
USER = "ada"
SETTINGS = {
    "fails": "",  # requests to refuse: a regular expression for "METHOD PATH"
    "status": 500,  # of such a refusal
    "delay_s": 0,  # before any answer
}


class ModelHub:
    """The client of a stand-in at `url`."""

    def __init__(self, url: str) -> None:
        self.url = url

    def set(self, **settings: object) -> None:
        """Set SETTINGS (others get their defaults), delete all repositories, and clear the log."""
        self._ask("POST", json.dumps(SETTINGS | settings).encode())

    def requests(self) -> list[str]:
        """Return all requests so far, as "METHOD PATH"."""
        return json.loads(self._ask("GET"))["log"]

    def repositories(self) -> dict[str, dict]:
        """Return, by USER/NAME: `private`, `commits` (their messages), and the names of the `files`."""
        return json.loads(self._ask("GET"))["repositories"]

    def _ask(self, method: str, data: bytes | None = None) -> bytes:
        with urllib.request.urlopen(urllib.request.Request(f"{self.url}/__hub", data=data, method=method)) as answer:
            return answer.read()


@contextmanager
def started_model_hub() -> Iterator[ModelHub]:
    from helpers.servers import run_server  # not above, since the server runs this file as a program

    with run_server(__file__) as url:
        yield ModelHub(url)


def use_model_hub(patch: pytest.MonkeyPatch, url: str, token: str | None = TOKEN) -> None:
    """Let this process use the hub at `url` with a token."""
    from huggingface_hub import constants

    from helpers.hub import use_hub

    use_hub(patch, url)
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # whose servers have no stand-in
    if token:
        patch.setenv("HF_TOKEN", token)


@dataclass
class Repository:
    private: bool
    commits: list[str] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    large: set[str] = field(default_factory=set)  # names of files in the storage

    @property
    def sha(self) -> str:
        return f"{len(self.commits):040x}"


async def serve() -> None:
    from aiohttp import web

    settings, log = dict(SETTINGS), []
    repositories: dict[str, Repository] = {}
    storage: dict[str, bytes] = {}  # by sha256

    def refused(status: int, message: str, code: str = "") -> web.Response:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        return web.json_response({"error": message}, status=status, headers=headers)

    @web.middleware
    async def checked(request: web.Request, handler) -> web.StreamResponse:
        if request.path == "/__hub":
            return await handler(request)
        line = f"{request.method} {request.path}"
        log.append(line)
        await asyncio.sleep(settings["delay_s"])
        if settings["fails"] and re.search(settings["fails"], line):
            return refused(settings["status"], "out of order")
        is_open = request.path.startswith(("/storage/", "/api/validate-yaml"))  # signed addresses need no token
        if not is_open and request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return refused(401, "Invalid credentials")
        repository = "/".join(request.match_info.get(part, "") for part in ("user", "name"))
        if repository != "/" and repository not in repositories:
            return refused(404, "Repository not found", "RepoNotFound")
        return await handler(request)

    def found(request: web.Request) -> Repository:
        return repositories[f"{request.match_info['user']}/{request.match_info['name']}"]

    async def whoami(request: web.Request) -> web.Response:
        return web.json_response({"name": USER, "type": "user", "orgs": []})

    async def create(request: web.Request) -> web.Response:
        asked = await request.json()
        user, name = asked.get("organization") or USER, asked["name"]
        if user != USER:
            return refused(403, f"You don't have the rights to create a model under the namespace {user!r}")
        if f"{user}/{name}" in repositories:
            url = f"{request.url.origin()}/{user}/{name}"
            return web.json_response({"error": "You already created this model repo", "url": url}, status=409)
        private = asked.get("visibility") == "private" or asked.get("private") is True
        repositories[f"{user}/{name}"] = Repository(private)
        return web.json_response({"url": f"{request.url.origin()}/{user}/{name}"})

    async def described(request: web.Request) -> web.Response:
        repository = found(request)
        name = f"{request.match_info['user']}/{request.match_info['name']}"
        siblings = [{"rfilename": file} for file in repository.files]
        known = {"id": name, "sha": repository.sha, "private": repository.private, "tags": [], "siblings": siblings}
        return web.json_response(known)

    async def validate(request: web.Request) -> web.Response:
        import yaml

        asked = await request.json()
        _, front, _ = asked["content"].split("---\n", 2)
        valid = isinstance(yaml.safe_load(front).get("tags"), list)
        return web.json_response({"errors": [] if valid else [{"message": "no tags"}]}, status=200 if valid else 400)

    async def preupload(request: web.Request) -> web.Response:
        asked = (await request.json())["files"]
        modes = {True: "lfs", False: "regular"}
        files = [
            {"path": file["path"], "uploadMode": modes[file["path"].endswith(".safetensors")], "shouldIgnore": False}
            for file in asked
        ]
        return web.json_response({"files": files})

    async def batch(request: web.Request) -> web.Response:
        asked = await request.json()
        objects = []
        for known in asked["objects"]:
            where = f"{request.url.origin()}/storage/{known['oid']}"
            actions = {"upload": {"href": where}, "verify": {"href": f"{where}/verify"}}
            objects.append(known | ({} if known["oid"] in storage else {"actions": actions}))
        return web.json_response({"transfer": "basic", "objects": objects})

    async def store(request: web.Request) -> web.Response:
        data = await request.read()
        if hashlib.sha256(data).hexdigest() != request.match_info["oid"]:
            return refused(400, "other content")
        storage[request.match_info["oid"]] = data
        return web.Response()

    async def verify(request: web.Request) -> web.Response:
        asked = await request.json()
        return web.Response(status=200 if len(storage[asked["oid"]]) == asked["size"] else 400)

    async def commit(request: web.Request) -> web.Response:
        repository, message = found(request), ""
        new: dict[str, bytes] = {}
        for line in (await request.text()).splitlines():
            entry = json.loads(line)
            known = entry["value"]
            if entry["key"] == "header":
                message = known["summary"]
            elif entry["key"] == "file":
                new[known["path"]] = base64.b64decode(known["content"])
            else:
                assert entry["key"] == "lfsFile"
                new[known["path"]] = storage[known["oid"]]
                repository.large.add(known["path"])
        repository.files |= new
        repository.commits.append(message)
        url = f"{request.url.origin()}/{request.match_info['user']}/{request.match_info['name']}"
        sha = repository.sha
        return web.json_response({"commitUrl": f"{url}/commit/{sha}", "commitOid": sha, "success": True})

    async def resolve(request: web.Request) -> web.Response:
        repository, path = found(request), request.match_info["path"]
        if path not in repository.files:
            return refused(404, "Entry not found", "EntryNotFound")
        data = repository.files[path]
        digest = (hashlib.sha256 if path in repository.large else hashlib.sha1)(data).hexdigest()
        headers = {"X-Repo-Commit": repository.sha, "ETag": f'"{digest}"', "Accept-Ranges": "none"}
        return web.Response(body=data, headers=headers)

    async def control(request: web.Request) -> web.Response:
        if request.method == "GET":
            known = {
                name: {"private": one.private, "commits": one.commits, "files": sorted(one.files)}
                for name, one in repositories.items()
            }
            return web.json_response({"log": log, "repositories": known})
        settings.update(await request.json())
        for kept in (repositories, storage, log):
            kept.clear()
        return web.Response()

    app = web.Application(middlewares=[checked], client_max_size=1 << 28)
    app.router.add_route("*", "/__hub", control)
    app.router.add_get("/api/whoami-v2", whoami)
    app.router.add_post("/api/repos/create", create)
    app.router.add_post("/api/validate-yaml", validate)
    api, own = "/api/models/{user}/{name}", "/{user}/{name}"
    app.router.add_get(api, described)
    app.router.add_get(api + "/revision/main", described)
    app.router.add_post(api + "/preupload/main", preupload)
    app.router.add_post(api + "/commit/main", commit)
    app.router.add_post(own + ".git/info/lfs/objects/batch", batch)
    app.router.add_put("/storage/{oid}", store)
    app.router.add_post("/storage/{oid}/verify", verify)
    app.router.add_get(own + "/resolve/{revision}/{path:.*}", resolve)  # HEAD too
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(site._server.sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    sys.exit(asyncio.run(serve()))
