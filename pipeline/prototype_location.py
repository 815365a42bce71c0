"""Where a prototype set is: beside its shards if it is given by name, anywhere if by a path, which has a slash."""

from __future__ import annotations

import re
from pathlib import Path

from mimcl.pipeline.files import DataError
from mimcl.pipeline.remote.urls import is_address, shown

_NAME = re.compile(r"[\w-][\w.-]*")


def is_set_name(value: str) -> bool:
    """Whether `value` can be the name of a set beside the shards."""
    return _NAME.fullmatch(value) is not None


def set_path(value: str) -> Path | None:
    """Return the folder if `value` is a path, None if it is a name. Raises DataError if it is neither."""
    if is_address(value):
        raise DataError(f"prototype set {shown(value)} is a URL; give the name of a set beside the shards, or a folder")
    if "/" in value:
        return Path(value)
    if not is_set_name(value):
        raise DataError(
            f"{value!r} is not the name of a prototype set (letters, digits, dots, - and _); a path needs a slash, "
            f"for example ./{value or 'sets'}"
        )
    return None


def as_option(folder: Path) -> str:
    """Return the path of a set as `set_path` takes it."""
    return str(folder) if "/" in str(folder) else f"./{folder}"
