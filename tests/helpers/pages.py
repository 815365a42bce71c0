"""A report parsed as by a browser: its elements, its data, and whether it could request anything else."""

from __future__ import annotations

import base64
import hashlib
import json
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit

_VOID = {"meta", "img", "br", "input"}


class Page(HTMLParser):
    """Elements with their attributes in order, texts, scripts and styles, and errors of nesting."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.faults: list[str] = []
        self.text = ""
        self.raw: dict[str, list[str]] = {"script": [], "style": []}
        self._open: list[str] = []
        self.source = path.read_text("utf-8")
        self.feed(self.source)
        self.close()
        self.faults += [f"{tag} is not closed" for tag in self._open]

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag in self.raw:
            self.raw[tag].append("")
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open.pop() != tag:
            self.faults.append(f"</{tag}> at {self.getpos()}")

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in self.raw:
            self.raw[self._open[-1]][-1] += data
        else:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def charts(self) -> dict[str, dict]:
        """The charts by title."""
        return {chart["title"]: chart for chart in json.loads(self.raw["script"][0])}

    def assert_valid(self) -> None:
        """Check that the page is well-formed and self-contained: it fetches nothing and runs only its own scripts."""
        assert not self.faults
        for tag, attributes in self.elements:
            assert not [name for name in attributes if name == "style" or name.startswith("on")], (tag, attributes)
            assert attributes.get("src", "data:image/").startswith("data:image/"), (tag, attributes)
            link = urlsplit(attributes.get("href") or "#")  # within the page, or to a report beside it
            assert not link.scheme, (tag, attributes)
            assert not link.netloc, (tag, attributes)
            assert not link.path or Path(link.path).name == "report.html", (tag, attributes)
            assert tag not in ("link", "iframe", "object", "embed", "base", "form"), tag
        (style,) = self.raw["style"]
        assert "url(" not in style
        assert "@import" not in style
        assert len(self.raw["script"]) == 3
        (policy,) = [a["content"] for a in self.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
        directives = dict(part.strip().split(" ", 1) for part in policy.split(";"))
        assert directives["default-src"] == "'none'"
        assert directives["img-src"] == "data:"
        assert directives["style-src"] == _hash(style)
        assert directives["script-src"].split() == [_hash(script) for script in self.raw["script"][1:]]
        ids = [attributes["id"] for _, attributes in self.elements if "id" in attributes]
        assert len(ids) == len(set(ids))
        assert {a["href"][1:] for a in self.all("a") if a["href"].startswith("#")} <= set(ids)
        assert all(a.get("alt") for a in self.all("img"))


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
