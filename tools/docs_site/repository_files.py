"""MkDocs hook: files of the repository that pages link to become pages of the site.

A link such as ../tools/bench/loader.py thus works on the site, which need not know the repository's address, and in the
repository itself. A link to a folder leads to its README.md; without one the strict build fails.
"""

from __future__ import annotations

import os.path
import posixpath
import re
from collections.abc import Callable
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_FOLDER = "repository"  # of the site, for files outside docs/
_LINK = re.compile(r"(?<=\]\()([^)\s#]+)")
_LANGUAGES = {".py": "python", ".sh": "sh", ".toml": "toml", ".yml": "yaml", ".cff": "yaml"}


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add a page for each file outside docs/ that a page links to, directly or from such a page."""
    sources = [file.src_uri for file in files.documentation_pages()]
    while sources:
        source = sources.pop()
        path = _path(source, config)
        for match in _LINK.finditer(path.read_text("utf-8")) if path.suffix == ".md" else ():
            target = _source(path.parent / match[0], config)
            if target and target.startswith(f"{_FOLDER}/") and target not in files.src_uris:
                files.append(File.generated(config, target, content=_content(_path(target, config))))
                sources.append(target)
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links to the pages of this site that show the files, which are kept out of the search."""
    if page.file.src_uri.startswith(f"{_FOLDER}/"):
        page.meta.setdefault("search", {"exclude": True})
    folder, home = _path(page.file.src_uri, config).parent, posixpath.dirname(page.file.src_uri)

    def moved(match: re.Match[str]) -> str:
        target = _source(folder / match[0], config)
        return posixpath.relpath(target, home or ".") if target else match[0]

    return _outside_code(markdown, lambda text: _LINK.sub(moved, text))


def _outside_code(markdown: str, change: Callable[[str], str]) -> str:
    parts = re.split(r"(^`{3,}.*?^`{3,}$)", markdown, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if number % 2 else change(part) for number, part in enumerate(parts))


def _path(source: str, config: MkDocsConfig) -> Path:
    """Return the file from which the page `source` (its path in the site's sources) is made."""
    docs = Path(config.docs_dir)
    if not source.startswith(f"{_FOLDER}/"):
        return docs / source
    path = docs.parent / source.removeprefix(f"{_FOLDER}/")
    return path if path.is_file() else path.with_suffix("")  # of loader.py.md


def _source(path: Path, config: MkDocsConfig) -> str | None:
    """Return the path in the site's sources of a file of the repository, None for anything else."""
    docs, path = Path(config.docs_dir), Path(os.path.normpath(path))  # docs/changelog.md is a link
    if (path / "README.md").is_file():
        path /= "README.md"
    if not path.is_file() or not path.is_relative_to(docs.parent):
        return None
    if path.is_relative_to(docs):
        return path.relative_to(docs).as_posix()
    name = f"{_FOLDER}/{path.relative_to(docs.parent).as_posix()}"
    return name if path.suffix == ".md" else f"{name}.md"


def _content(path: Path) -> str:
    text = path.read_text("utf-8")
    if path.suffix == ".md":
        return text
    fence = "`" * 6
    return f"# {path.name}\n\n{fence}{_LANGUAGES.get(path.suffix, 'text')}\n{text}\n{fence}\n"
