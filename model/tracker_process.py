"""The process that speaks to Weights & Biases or MLflow: `python -m mimcl.model.tracker_process wandb`.

On its standard input come lines of JSON: the arguments of the service's class, then {"draw", "numbers"} until the end.
A failure is one line on standard output; what the libraries print goes to standard error.
"""

from __future__ import annotations

import itertools
import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

Rows = list[tuple[int, dict[str, float]]]  # draws with their numbers

_PARAMS, _METRICS = 100, 1000  # what MLflow takes at once
_LONGEST_PARAM, _LONGEST_REASON = 6000, 300  # characters


class Service(Protocol):
    """A run at a service, begun or, where `id` is known there, gone on with.

    `training`: the run itself speaks, which brings its configuration; else somebody adds to it later.
    """

    def log(self, rows: Rows) -> None: ...

    def close(self) -> None: ...


class Wandb:
    """Charts over the draw. What a resumed run repeats is shown again, on the same spots, since it is the same."""

    def __init__(self, id: str, name: str, folder: str, place: str, training: bool, params: Mapping[str, Any]) -> None:
        import wandb

        self._run = wandb.init(
            project=place,
            id=id,
            name=name,
            resume="allow",
            dir=folder,
            config=dict(params),
            allow_val_change=training,
            settings=wandb.Settings(console="off"),
        )
        self._run.define_metric("draw")
        self._run.define_metric("*", step_metric="draw")

    def log(self, rows: Rows) -> None:
        for draw, numbers in rows:
            self._run.log({"draw": draw, **numbers})  # without a step, which could never go back

    def close(self) -> None:
        self._run.finish()


class Mlflow:
    """Steps are draws. What a resumed run repeats is left out."""

    def __init__(self, id: str, name: str, folder: str, place: str, training: bool, params: Mapping[str, Any]) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client, self._training = MlflowClient(place), training
        self._seen: dict[str, int] = {}  # the last draw of each number that is there
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", "mimcl")
        found = self._client.get_experiment_by_name(experiment)
        number = found.experiment_id if found else self._client.create_experiment(experiment)
        runs = self._client.search_runs([number], f"tags.mimcl = '{id}'", max_results=1)
        if runs:
            self._run = runs[0].info.run_id
            if training:
                self._client.update_run(self._run, status="RUNNING")
                for key in runs[0].data.metrics:
                    self._seen[key] = max(point.step for point in self._client.get_metric_history(self._run, key))
            return
        self._run = self._client.create_run(number, run_name=name, tags={"mimcl": id}).info.run_id
        values = [Param(key, str(value)[:_LONGEST_PARAM]) for key, value in params.items()]
        for first in range(0, len(values), _PARAMS):
            self._client.log_batch(self._run, params=values[first : first + _PARAMS])

    def log(self, rows: Rows) -> None:
        from mlflow.entities import Metric

        now = round(1000 * time.time())  # of MLflow's axis, nothing depends on it
        metrics = [
            Metric(key, value, now, draw)
            for draw, numbers in rows
            for key, value in numbers.items()
            if draw > self._seen.get(key, -1)
        ]
        for first in range(0, len(metrics), _METRICS):
            self._client.log_batch(self._run, metrics[first : first + _METRICS])

    def close(self) -> None:
        if self._training:
            self._client.set_terminated(self._run)


SERVICES: dict[str, type[Service]] = {"wandb": Wandb, "mlflow": Mlflow}


def follow(service: str, lines: Iterable[bytes]) -> None:
    """Brings everything to the service; raises what its library raises."""
    batches = _batches(lines)
    settings, *early = next(batches)
    run = SERVICES[service](**settings)
    for messages in itertools.chain([early], batches):
        run.log([(message["draw"], message["numbers"]) for message in messages])
    run.close()


def _batches(lines: Iterable[bytes]) -> Iterator[list[dict[str, Any]]]:
    """What has come meanwhile, at once: a thread reads while the service is spoken to."""
    arrived: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()

    def read() -> None:
        for line in lines:
            arrived.put(line)
        arrived.put(None)

    threading.Thread(target=read, daemon=True).start()
    ended = False
    while not ended:
        batch = [arrived.get()]
        while not arrived.empty():
            batch.append(arrived.get())
        ended = batch[-1] is None
        if messages := [json.loads(line) for line in batch if line]:
            yield messages


def main() -> None:
    """Exit code 1 after a failure."""
    # SLURM signals all processes of a step. The run decides when this one ends: with its input.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        follow(sys.argv[1], sys.stdin.buffer)
    except Exception as error:
        traceback.print_exc()
        print(" ".join(str(error).split())[:_LONGEST_REASON], file=out, flush=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
