"""Weights & Biases and MLflow as services that a `Tracker` logs to, each through its own library."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Rows = list[tuple[int, dict[str, float]]]  # draws with their values
ServiceName = Literal["wandb", "mlflow"]

_PARAMS, _METRICS = 100, 1000  # MLflow's limits per request
_MAX_PARAM = 6000  # characters
# The libraries' own settings; a value from the user's environment wins. wandb's exit hook waits for a connection that
# is still being attempted, and for its crash reports to wandb's developers: both are kept short or turned off.
_ENVIRONMENT = {
    "WANDB_SILENT": "true",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_INIT_TIMEOUT": "10",  # seconds
    "WANDB_FINISH_TIMEOUT": "5",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
}


@dataclass(frozen=True)
class ServiceConfig:
    """Which run to log to; it is created where the service does not know its `id` yet.

    `training`: the run itself logs, with its configuration as `params`; otherwise values are added to it later.
    """

    id: str
    name: str
    folder: str
    project: str  # project at Weights & Biases, tracking URI of MLflow
    training: bool
    params: Mapping[str, Any] = field(default_factory=dict)


class Service(Protocol):
    """A run at a tracking service. Every method may block and may raise what its library raises."""

    def log(self, rows: Rows) -> None: ...

    def close(self) -> None: ...


class Wandb:
    """Charts over the draw. Steps that a resumed run repeats are logged again, with the same values."""

    def __init__(self, config: ServiceConfig) -> None:
        import wandb

        self._run = wandb.init(
            project=config.project,
            id=config.id,
            name=config.name,
            resume="allow",
            dir=config.folder,
            config=dict(config.params),
            allow_val_change=config.training,
            settings=wandb.Settings(console="off", finish_timeout_raises=True),
        )
        self._run.define_metric("draw")
        self._run.define_metric("*", step_metric="draw")

    def log(self, rows: Rows) -> None:
        for draw, values in rows:
            self._run.log({"draw": draw, **values})  # without wandb's own step, which can only increase

    def close(self) -> None:
        self._run.finish()


class Mlflow:
    """Steps are draws. Steps that a resumed run repeats are skipped."""

    def __init__(self, config: ServiceConfig) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client, self._training = MlflowClient(config.project), config.training
        self._last_draws: dict[str, int] = {}  # by metric
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "mimcl")
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        runs = self._client.search_runs([experiment], f"tags.mimcl = '{config.id}'", max_results=1)
        if runs:
            self._run = runs[0].info.run_id
            if config.training:
                self._client.update_run(self._run, status="RUNNING")
                for key in runs[0].data.metrics:
                    history = self._client.get_metric_history(self._run, key)
                    self._last_draws[key] = max(point.step for point in history)
            return
        self._run = self._client.create_run(experiment, run_name=config.name, tags={"mimcl": config.id}).info.run_id
        params = [Param(key, str(value)[:_MAX_PARAM]) for key, value in config.params.items()]
        for first in range(0, len(params), _PARAMS):
            self._client.log_batch(self._run, params=params[first : first + _PARAMS])

    def log(self, rows: Rows) -> None:
        from mlflow.entities import Metric

        now = round(1000 * time.time())  # for MLflow's time axis; nothing depends on it
        metrics = [
            Metric(key, value, now, draw)
            for draw, values in rows
            for key, value in values.items()
            if draw > self._last_draws.get(key, -1)
        ]
        for first in range(0, len(metrics), _METRICS):
            self._client.log_batch(self._run, metrics[first : first + _METRICS])

    def close(self) -> None:
        if self._training:
            self._client.set_terminated(self._run)


def connect(service: ServiceName, config: ServiceConfig) -> Service:
    """Open the run at the service; blocks, and raises what the service's library raises."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    return Wandb(config) if service == "wandb" else Mlflow(config)
