"""One line for each thing that the doctor found."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from mimcl.pipeline.restart import RestartNeeded

Mark = Literal["ok", "info", "warning", "broken"]
SIGNS: dict[Mark, str] = {"ok": "✓", "info": "·", "warning": "!", "broken": "✗"}


@dataclass(frozen=True)
class Finding:
    """A finding; "broken" means that training cannot work, "warning" that it works worse than it could."""

    name: str
    text: str
    mark: Mark = "ok"
    numbers: dict[str, Any] = field(default_factory=dict)  # the values in the text, for other programs


def found_by(name: str, check: Callable[[], Iterable[Finding]], on_error: Mark = "warning") -> list[Finding]:
    """Return the findings of a check; if it fails, also a finding with the error. Raises only RestartNeeded."""
    found: list[Finding] = []
    try:
        found.extend(check())
    except RestartNeeded:
        raise
    except Exception as error:  # any error of a broken installation is a finding
        found.append(Finding(name, f"check failed: {reason(error)}", on_error))
    return found


def reason(error: Exception) -> str:
    """Return an error message as one line."""
    return (" ".join(str(error).split()) or type(error).__name__)[:300]
