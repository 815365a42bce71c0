"""Which data sets lie with a server that limits requests, and how many it allows."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class RequestLimit(NamedTuple):
    """How many requests for the addresses of files a server answers in a window of time."""

    requests: int
    window_s: int


def has_request_limit(root: str | Path) -> bool:
    """Whether the data root is on a model hub."""
    return str(root).lower().startswith("hf:")


def request_limit(root: str | Path) -> RequestLimit | None:
    """Return the documented limit of the data root's server, None without one.

    A hub's is that without an account, or with a token that of a free one.
    """
    if not has_request_limit(root):
        return None
    from huggingface_hub import get_token

    return RequestLimit(5000 if get_token() else 3000, 300)
