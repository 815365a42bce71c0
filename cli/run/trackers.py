"""Weights & Biases and MLflow for a run: one run there for each run here, across resumes and evaluations."""

from __future__ import annotations

import importlib.util
import json
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlsplit

from mimcl.cli.config import Config, flatten
from mimcl.cli.errors import ConfigError
from mimcl.model.tracker_services import ServiceConfig, ServiceName
from mimcl.model.trackers import LogConfig, Tracker
from mimcl.pipeline.files import DataError, open_regular, remedy, write_json

_FILE = "trackers.json"
_SERVICES: tuple[ServiceName, ...] = get_args(ServiceName)


def require_libraries(log: LogConfig) -> None:
    """Raise ConfigError unless the libraries that `log` needs are installed and it contains no password."""
    for service in _SERVICES:
        # A folder of that name in the working directory is found too, as a namespace package.
        found = importlib.util.find_spec(service)
        if getattr(log, service) and (found is None or found.origin is None):
            raise ConfigError(f"--{service} needs {service}, which is not installed; pip install 'mimcl[{service}]'")
    if log.mlflow and urlsplit(log.mlflow).password:
        raise ConfigError(
            "--mlflow contains a password, which would be written into the run folder; set MLFLOW_TRACKING_USERNAME "
            "and MLFLOW_TRACKING_PASSWORD instead"
        )


def trackers_of_run(folder: Path, config: Config, warn: Callable[[str], None]) -> list[Tracker]:
    """Create the sinks that `config.log` asks for, with the configuration as parameters.

    The run's id at the services is created once and kept in trackers.json. Raises OSError.
    """
    projects = {service: project for service in _SERVICES if (project := getattr(config.log, service))}
    if not projects:
        return []
    known = _read(folder / _FILE)
    run_id = known.get("id") or uuid.uuid4().hex  # no result depends on it
    write_json(folder / _FILE, {"id": run_id, **projects})
    params = {key: list(v) if isinstance(v, tuple) else v for key, v in flatten(config).items()}  # as in YAML
    return _trackers(folder, run_id, projects, params, warn)


def existing_trackers(folder: Path, warn: Callable[[str], None]) -> list[Tracker]:
    """Create sinks that add to the trackers of the run in `folder`; none if it was trained without trackers."""
    known = _read(folder / _FILE)
    projects = {service: known[service] for service in _SERVICES if service in known}
    return _trackers(folder, known["id"], projects, None, warn) if projects else []


def _trackers(
    folder: Path,
    run_id: str,
    projects: Mapping[ServiceName, str],
    params: Mapping[str, Any] | None,
    warn: Callable[[str], None],
) -> list[Tracker]:
    folder = folder.absolute()
    return [
        Tracker(
            service,
            ServiceConfig(run_id, folder.name, str(folder), project, training=params is not None, params=params or {}),
            warn,
        )
        for service, project in projects.items()
    ]


def _read(path: Path) -> dict[str, str]:
    """Return the file's content, empty if there is no file. Raises DataError when it is damaged."""
    try:
        with open_regular(path) as file:
            content = json.loads(file.read())
        if isinstance(content, dict) and "id" in content and all(isinstance(v, str) for v in content.values()):
            return content
    except FileNotFoundError:
        return {}
    except OSError as error:
        advice = remedy(error, "delete it to start a new run at the trackers")
        raise DataError(f"{path} cannot be read ({error.strerror or error}); {advice}") from None
    except ValueError:
        pass
    raise DataError(f"{path} is damaged; delete it to start a new run at the trackers")
