"""What the doctor finds, one line each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from mimcl.pipeline.restart import RestartNeeded

Mark = Literal["ok", "info", "warning", "broken"]
SIGNS: dict[Mark, str] = {"ok": "✓", "info": "·", "warning": "!", "broken": "✗"}


@dataclass(frozen=True)
class Finding:
    """`broken`: something that training needs does not work; `warning`: it works, but worse than it could."""

    name: str
    text: str
    mark: Mark = "ok"
    numbers: dict[str, Any] = field(default_factory=dict)  # what the text says, for other programs


def found_by(name: str, check: Callable[[], Iterable[Finding]], on_error: Mark = "warning") -> list[Finding]:
    """The findings of a check; where it fails, those before and one that says why. Raises RestartNeeded only."""
    found: list[Finding] = []
    try:
        found.extend(check())
    except RestartNeeded:
        raise
    except Exception as error:  # whatever a broken installation raises: that is what is looked for
        found.append(Finding(name, f"not found: {reason(error)}", on_error))
    return found


def reason(error: Exception) -> str:
    """An error in a line."""
    return (" ".join(str(error).split()) or type(error).__name__)[:300]
