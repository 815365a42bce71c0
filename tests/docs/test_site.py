"""The documentation site is built from the pages, its links lead somewhere, and viewing it needs no network."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from helpers.command_tree import COMMANDS
from helpers.doc_pages import PAGES, ROOT

from mimcl.cli.keys.key_list import finetune_keys, train_keys

pytestmark = pytest.mark.slow

LOADED = {"img": "src", "script": "src", "link": "href", "iframe": "src", "source": "srcset"}  # by the browser itself


class Html(HTMLParser):
    """The ids of a page, the links that a reader follows, and what a browser loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = {""}
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.ids |= {found.get("id") or "", (found.get("name") or "") if tag == "a" else ""}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        elif tag in LOADED and found.get(LOADED[tag]) and found.get("rel") != "canonical":
            self.loaded.append(found[LOADED[tag]])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site):
    return {path: Html(path) for path in sorted(site.rglob("*.html")) if path.name != "404.html"}  # which has /links


def test_every_page_is_there(site, pages):
    assert {site / name.replace(".md", ".html") for name in PAGES} <= pages.keys()


def test_internal_links_and_anchors_exist(pages):
    broken = []
    for path, page in pages.items():
        for link in [*page.links, *page.loaded]:
            parts = urlsplit(link)
            if parts.scheme:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.exists() or (target in pages and unquote(parts.fragment) not in pages[target].ids):
                broken.append(f"{path.name}: {link}")
    assert not broken


def test_nothing_is_fetched_from_elsewhere(site, pages):
    assert not [link for page in pages.values() for link in page.loaded if urlsplit(link).netloc]
    styles = "\n".join(path.read_text("utf-8") for path in site.rglob("*.css"))
    assert not re.findall(r"@import|url\(\s*['\"]?(?:https?:)?//", styles)


def test_keys_and_commands_are_complete(site, pages):
    keys = pages[site / "keys.html"].ids
    assert {key.key for key in train_keys()} | {f"finetune.{key.key}" for key in finetune_keys()} <= keys
    assert {name.replace(" ", "-") for name in COMMANDS if name} <= pages[site / "commands.html"].ids
