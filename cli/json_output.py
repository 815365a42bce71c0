"""Results as JSON for other programs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any


def to_json(value: Any) -> str:
    """Return a dataclass as indented JSON text, converted by `json_ready`; in ASCII, which every encoding has."""
    return json.dumps(json_ready(value), indent=1)


def json_ready(value: Any, nonfinite: Callable[[float], str | None] = lambda number: None) -> Any:
    """Convert dataclasses to dicts, tuples to lists and paths to text; NaN and infinity become `nonfinite(number)`."""
    if is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): json_ready(inner, nonfinite) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(inner, nonfinite) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return nonfinite(value)
    return str(value) if isinstance(value, Path) else value
