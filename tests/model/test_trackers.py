"""Weights & Biases and MLflow, the real libraries: what arrives, and that a run does not wait for a dead server."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from helpers.exhaustive import exhaustive
from helpers.tracker_stores import closed_port, mlflow_runs, silent_server, wandb_runs

from mimcl.model import trackers
from mimcl.model.tracker_services import ServiceConfig
from mimcl.model.trackers import Tracker

pytestmark = pytest.mark.slow  # starts the trackers' own services


@pytest.fixture
def warnings():
    return []


@pytest.fixture
def start(tmp_path, warnings, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")

    monkeypatch.setattr(Tracker, "close_timeout_s", 60.0)

    def started(service, project, training=True, **params):
        config = ServiceConfig("abc", "first", str(tmp_path), project, training, params)
        return Tracker(service, config, warnings.append)

    return started


def test_wandb_gets_configuration_and_values(tmp_path, start, warnings):
    sink = start("wandb", "trial", **{"optim.base_lr": 0.5, "log.mlflow": None})
    rows = [{"draw": 64 * n, "loss": n / 3, "lr": 1e-4} for n in range(3000)]  # more than a block of its file
    for row in rows:
        sink.write(row["draw"], {key: value for key, value in row.items() if key != "draw"})
    sink.close()
    assert warnings == []
    (run,) = wandb_runs(tmp_path)
    assert (run["id"], run["name"], run["project"]) == ("abc", "first", "trial")
    assert run["config"]["optim.base_lr"] == 0.5
    assert run["history"] == rows


def test_mlflow_resumes_the_same_run_and_skips_repeated_steps(tmp_path, start, warnings, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # faster than a database, which tests/cli has
    uri = f"file:{tmp_path}/mlruns"
    sink = start("mlflow", uri, **{f"section.key{n}": n for n in range(120)})
    for n in range(6):
        sink.write(8 * n, {"loss": n / 2})
    sink.close()
    assert mlflow_runs(uri)[0]["status"] == "FINISHED"
    again = start("mlflow", uri, **{"section.key0": 7, "new": 1})
    for n in range(3, 9):
        again.write(8 * n, {"loss": n / 2, "window": n})
    again.close()
    later = start("mlflow", uri, training=False)
    for value in (0.25, 0.5):
        later.write(40, {"knn/nn": value})
    later.close()
    assert warnings == []
    (run,) = mlflow_runs(uri)
    assert (run["id"], run["name"], run["status"]) == ("abc", "first", "FINISHED")
    assert run["params"] == {f"section.key{n}": str(n) for n in range(120)}
    assert run["metrics"] == {
        "loss": [(8 * n, n / 2) for n in range(9)],
        "window": [(8 * n, n) for n in range(3, 9)],
        "knn/nn": [(40, 0.25), (40, 0.5)],
    }


PROGRAM = """
import signal, sys, time
from mimcl.model.tracker_services import ServiceConfig
from mimcl.model.trackers import Tracker
service, project, folder, close_timeout_s, training_s = sys.argv[1:]
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda *_: None)  # a run finishes its step first
Tracker.close_timeout_s = float(close_timeout_s)
sink = Tracker(service, ServiceConfig("abc", "first", folder, project, True), print)
began = time.monotonic()
for n in range(5_000):
    sink.write(n, {"loss": n / 2})
print("wrote", time.monotonic() - began, flush=True)
time.sleep(float(training_s))
sink.write(n + 1, {"loss": 0.5})
began = time.monotonic()
sink.close()
print("closed", time.monotonic() - began)
sink.write(1, {"loss": 1.0})
sink.close()
"""


def program(*arguments, **environment):
    """Starts PROGRAM, in a process group of its own."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | environment
    environment.pop("WANDB_SERVICE", None)  # wandb's process for this process
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, start_new_session=True, **streams)


@pytest.mark.parametrize(
    ("service", "server", "training_s"),
    [
        ("wandb", "silent", 8),
        ("mlflow", "closed", 0),
        *exhaustive(("wandb", "silent", 0), ("wandb", "closed", 0), ("wandb", "closed", 8)),
        *exhaustive(("mlflow", "silent", 0), ("mlflow", "silent", 8), ("mlflow", "closed", 8)),
    ],
)
def test_a_dead_server_costs_one_warning_and_a_bounded_time(tmp_path, service, server, training_s):
    """Whether the run ends while the library still tries to connect, or after it gave up."""
    listening, silent = silent_server()
    address = silent if server == "silent" else closed_port()
    began = time.monotonic()
    with listening:
        process = program(
            service,
            "trial" if service == "wandb" else address,
            tmp_path,
            2.0,
            training_s,
            WANDB_MODE="online",
            WANDB_BASE_URL=address,
            WANDB_API_KEY=40 * "a",
            WANDB_INIT_TIMEOUT="4",
            MLFLOW_HTTP_REQUEST_MAX_RETRIES="1",
            MLFLOW_HTTP_REQUEST_TIMEOUT="2",
        )
        output, errors = process.communicate(timeout=120)
    total = time.monotonic() - began
    assert process.returncode == 0, errors
    lines = output.splitlines()
    seconds = {line.split()[0]: float(line.split()[1]) for line in lines if line.startswith(("wrote", "closed"))}
    assert seconds["wrote"] < 2
    assert seconds["closed"] < 3
    (warning,) = [line for line in lines if "metrics.jsonl" in line]
    assert service in warning
    assert total < training_s + 25  # wandb alone waits for 90 s


def test_ctrl_c_loses_nothing(tmp_path):
    process = program("wandb", "trial", tmp_path, 60.0, 6, WANDB_MODE="offline")
    assert process.stdout.readline().startswith("wrote")
    for number in (signal.SIGINT, signal.SIGTERM):
        time.sleep(2)
        os.killpg(process.pid, number)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "metrics.jsonl" not in output
    assert [row["draw"] for row in wandb_runs(tmp_path)[0]["history"]] == list(range(5001))


def test_an_error_of_the_library_is_one_warning(tmp_path):
    environment = {"WANDB_MODE": "online", "WANDB_API_KEY": "", "NETRC": "/nonexistent"}
    process = program("wandb", "trial", tmp_path, 60.0, 0, **environment)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    (warning,) = [line for line in output.splitlines() if "metrics.jsonl" in line]
    assert "wandb" in warning
    assert "No API key configured" in warning


class SlowService:
    """Takes the first rows only when it is released."""

    def __init__(self):
        self.rows, self.released = [], threading.Event()

    def log(self, rows):
        self.released.wait()
        self.rows += rows

    def close(self):
        pass


@pytest.mark.parametrize("released", [True, False])
def test_rows_that_do_not_fit_into_the_queue_are_dropped_and_counted(start, warnings, monkeypatch, released):
    service = SlowService()
    monkeypatch.setattr(trackers, "connect", lambda *_: service)
    monkeypatch.setattr(trackers, "_MAX_QUEUED", 10)
    sink = start("mlflow", "nowhere")
    sink.close_timeout_s = 0.5
    for n in range(100):
        sink.write(n, {"loss": n / 2})
    if released:
        service.released.set()
    sink.close()
    (warning,) = warnings
    unsent = 100 - len(service.rows)
    assert 80 <= unsent <= 100
    assert f"{unsent} of 100" in warning
    service.released.set()
    assert [draw for draw, _ in service.rows] == list(range(len(service.rows)))
