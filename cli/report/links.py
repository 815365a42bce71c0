"""Links between reports that lie in folders beside one another."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote

PAGE, COMPARISON = "report.html", "comparison.json"


def relative_link(target: Path, page: Path) -> str:
    """Return the address of `target` as a link in `page`; it works wherever both are moved together."""
    relative = os.path.relpath(target.resolve(), page.resolve().parent)
    # Quoted, a folder's name can be neither a scheme, such as "javascript:", nor a query.
    return quote(os.fsencode(Path(relative).as_posix()))


def comparison_link(run: Path, page: Path) -> str | None:
    """Return the link to the page of the comparison that a run belongs to; None if it belongs to none.

    The page is written when the comparison ends, so it may not exist yet.
    """
    folder = run.resolve().parent
    return relative_link(folder / PAGE, page) if (folder / COMPARISON).is_file() else None


def report_link(run: Path, page: Path) -> str | None:
    """Return the link to a run's own report; None if it has none."""
    path = run / PAGE
    return relative_link(path, page) if path.is_file() else None
