"""Features that are not complete yet, in a hidden folder beside the output, from which `mimcl embed` resumes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mimcl.cli.encoders.bad_images import is_bad
from mimcl.cli.encoders.feature_store import ChunkedArray, feature_store
from mimcl.cli.errors import ConfigError
from mimcl.pipeline.files import DataError, write_json

_SETTINGS = "settings.json"


def folder_for(out: Path) -> Path:
    """Return the folder for the unfinished features of an output."""
    return out.with_name(f".{out.name}.unfinished")


class UnfinishedFeatures:
    """Chunks of features (N, D) of all images, with marks for bad ones, and the settings that they were made with."""

    def __init__(self, folder: Path, samples: int, width: int) -> None:
        self.folder, self.width = folder, width
        self.store: ChunkedArray = feature_store(folder / "features", samples, width)

    def begin(self, settings: dict[str, Any]) -> int:
        """Write the settings, or compare them with those of an earlier call; return how many chunks there are already.

        Raises ConfigError if the folder has features of other settings.
        """
        path = self.folder / _SETTINGS
        known = read_settings(path)
        if known is not None and (change := first_change(known, settings)):
            raise ConfigError(
                f"{self.folder} has unfinished features made with {change}; remove it, or give another --out"
            )
        if known is None:
            shutil.rmtree(self.store.folder, ignore_errors=True)
            write_json(path, settings)
        return sum(self.store.read(chunk) is not None for chunk in range(len(self.store.chunks)))

    def chunks(self) -> Iterator[tuple[range, NDArray[np.float32], NDArray[np.bool_]]]:
        """Yield the rows, the features and which of them are good, chunk by chunk. Raises DataError for a lost one."""
        for number, rows in enumerate(self.store.chunks):
            if (features := self.store.read(number)) is None:
                raise DataError(f"cannot read back what was just written to {self.store.folder}; check the disk")
            yield rows, features, ~is_bad(features)

    def bad(self) -> NDArray[np.int64]:
        """Return the sample ids of the bad images."""
        found = [rows.start + np.flatnonzero(~good) for rows, _, good in self.chunks()]
        return np.concatenate(found)

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def read_settings(path: Path) -> dict[str, Any] | None:
    """Read a JSON file of settings; None if there is none, or a damaged one."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def first_change(known: dict[str, Any], wanted: dict[str, Any]) -> str | None:
    """Say what `known` features were made from instead of the `wanted`; None if nothing differs."""
    for name, value in wanted.items():
        if (other := known.get(name)) != value:
            return f"other {name}" if name in ("weights", "images") else f"{name} {other} instead of {value}"
    return None
