"""The limit of open files of a command and of all processes that it starts."""

from __future__ import annotations

import resource
from contextlib import suppress

_MOST = 1 << 16  # some programs close every possible descriptor when they start a child; a limit may be 2^30


def raise_file_limit() -> None:
    """Raise the soft limit of open files to the hard one, at most to 65,536; a higher one stays."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST if hard == resource.RLIM_INFINITY else min(hard, _MOST)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):  # some systems allow less than their hard limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
