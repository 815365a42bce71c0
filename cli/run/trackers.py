"""Weights & Biases and MLflow beside a run: one run there for each here, over resumes and evaluations."""

from __future__ import annotations

import importlib.util
import json
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mimcl.cli.config import Config, flatten
from mimcl.cli.errors import ConfigError
from mimcl.model.trackers import LogConfig, Tracker
from mimcl.pipeline.files import DataError, open_regular, write_json

_FILE, _WORDS = "trackers.json", "trackers.log"
_SERVICES = ("wandb", "mlflow")


def require_libraries(log: LogConfig) -> None:
    """Raises ConfigError unless what `log` asks for is installed and can be written into the run folder."""
    for service in _SERVICES:
        # A folder of that name in the working directory is no library.
        found = importlib.util.find_spec(service)
        if getattr(log, service) and (found is None or found.origin is None):
            raise ConfigError(f"--{service} needs a library that is not installed: pip install 'mimcl[{service}]'")
    if log.mlflow and urlsplit(log.mlflow).password:
        raise ConfigError(
            "the URI of --mlflow has a password, which would be written into the run folder; give it to an http server "
            "in MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )


def trackers_of_run(folder: Path, config: Config, warn: Callable[[str], None]) -> list[Tracker]:
    """The sinks that `config.log` asks for, with the configuration as parameters.

    The run's name there, an identifier, is made once and kept in trackers.json. Raises OSError.
    """
    places = {service: place for service in _SERVICES if (place := getattr(config.log, service))}
    if not places:
        return []
    known = _read(folder / _FILE)
    identifier = known.get("id") or uuid.uuid4().hex  # no figure depends on it
    write_json(folder / _FILE, {"id": identifier, **places})
    return _trackers(folder, identifier, places, flatten(config), warn)


def trackers_beside(folder: Path, warn: Callable[[str], None]) -> list[Tracker]:
    """Sinks that add to what the run in `folder` has there; none where it was trained without."""
    known = _read(folder / _FILE)
    places = {service: known[service] for service in _SERVICES if service in known}
    return _trackers(folder, known["id"], places, None, warn) if places else []


def _trackers(
    folder: Path,
    identifier: str,
    places: Mapping[str, str],
    params: Mapping[str, Any] | None,
    warn: Callable[[str], None],
) -> list[Tracker]:
    folder = folder.absolute()
    settings = {
        "id": identifier,
        "name": folder.name,
        "folder": str(folder),
        "training": params is not None,
        "params": dict(params or {}),
    }
    return [Tracker(service, settings | {"place": place}, folder / _WORDS, warn) for service, place in places.items()]


def _read(path: Path) -> dict[str, str]:
    """The file's content, nothing where there is none. Raises DataError when it is damaged."""
    try:
        with open_regular(path) as file:
            content = json.loads(file.read())
        if isinstance(content, dict) and "id" in content and all(isinstance(v, str) for v in content.values()):
            return content
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        pass
    raise DataError(f"{path} is damaged; delete it, and the run begins anew at its trackers")
