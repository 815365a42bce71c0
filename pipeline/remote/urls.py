"""URLs of remote data sets: which schemes are supported, how to join a file name, what may be printed."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from mimcl.pipeline.files import DataError

SCHEMES = ("s3", "gs", "hf", "http", "https")
_SCHEME = re.compile(r"pipe:|[a-z][a-z0-9+.-]+:/", re.IGNORECASE)  # a Path keeps one of the two slashes


def url_of(root: str | Path) -> str | None:
    """Return a URL without its final slash, or None for a local path. Raises DataError for an unsupported URL."""
    text = str(root)
    found = _SCHEME.match(text)
    if found is None:
        return None
    scheme = found[0].rstrip("/").lower()
    if scheme == "pipe:":
        raise DataError(f"{text}: pipe: is not supported, it would run a command; give a folder of shards")
    if scheme.removesuffix(":") not in SCHEMES or text[len(scheme) : len(scheme) + 2] != "//":
        raise DataError(
            f"{shown(text)}: {scheme} is not supported; give a folder of shards, or s3://, gs://, hf:// or http(s)://"
        )
    if "::" in text or not text[len(scheme) + 2 :].strip("/"):
        raise DataError(f"{shown(text)} is not the URL of a folder; give scheme://HOST_OR_BUCKET/FOLDER")
    return text if is_http(text) and urlsplit(text).query else text.rstrip("/")


def is_address(path: str | Path) -> bool:
    """Whether `path` starts like a URL, even if it lost a slash as a Path."""
    return _SCHEME.match(str(path)) is not None


def joined(url: str, name: str) -> str:
    """Return the URL of a file in the folder; the query of an http(s) URL stays at the end."""
    if not is_http(url):
        return f"{url}/{name}"
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}"))


def shown(root: str | Path) -> str:
    """Return the URL without secrets: an http(s) URL loses its user, password and query."""
    text = str(root)
    if not is_http(text):
        return text
    parts = urlsplit(text)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment=""))


def is_http(text: str) -> bool:
    """Whether the URL is http or https."""
    return text.lower().startswith(("http://", "https://"))
