"""Addresses of data sets that lie elsewhere: which are taken, how names are joined to them, what of them is shown."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from mimcl.pipeline.files import DataError

SCHEMES = ("s3", "gs", "hf", "http", "https")
_SCHEME = re.compile(r"pipe:|[a-z][a-z0-9+.-]+:/", re.IGNORECASE)  # a Path has one slash of a URL's two


def url_of(root: str | Path) -> str | None:
    """`root` as a URL without a final slash, None for a folder. Raises DataError for what is neither."""
    text = str(root)
    found = _SCHEME.match(text)
    if found is None:
        return None
    scheme = found[0].rstrip("/").lower()
    if scheme == "pipe:":
        raise DataError(f"{text}: pipe: is refused: it would run a command; give a folder of shards")
    if scheme.removesuffix(":") not in SCHEMES or text[len(scheme) : len(scheme) + 2] != "//":
        raise DataError(
            f"{shown(text)}: {scheme} is not supported; give a folder of shards, or s3://, gs://, hf:// or http(s)://"
        )
    if "::" in text or not text[len(scheme) + 2 :].strip("/"):
        raise DataError(f"{shown(text)} is no address of a folder; give scheme://HOST_OR_BUCKET/FOLDER")
    return text if is_http(text) and urlsplit(text).query else text.rstrip("/")


def is_address(path: str | Path) -> bool:
    """Whether it begins like a URL, also one that became a Path and lost a slash."""
    return _SCHEME.match(str(path)) is not None


def joined(url: str, name: str) -> str:
    """The address of a file of the folder; what a web address has after its `?` stays behind the name."""
    if not is_http(url):
        return f"{url}/{name}"
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}"))


def shown(root: str | Path) -> str:
    """What may be printed: of a web address neither user and password nor what stands after its `?`."""
    text = str(root)
    if not is_http(text):
        return text
    parts = urlsplit(text)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment=""))


def is_http(text: str) -> bool:
    """Whether it is the address of a web server."""
    return text.lower().startswith(("http://", "https://"))
