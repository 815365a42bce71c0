"""Weights & Biases and MLflow, the real libraries: what arrives, and that a run does not wait for what does not."""

import os
import signal
import time

import pytest
from helpers.tracker_stores import closed_port, mlflow_runs, silent_server, wandb_runs

from mimcl.model.trackers import Tracker


@pytest.fixture
def told():
    return []


@pytest.fixture
def start(tmp_path, told, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")

    def started(service, place, training=True, patience=20.0, **params):
        settings = {"id": "abc", "name": "first", "folder": str(tmp_path), "place": place, "training": training}
        return Tracker(service, settings | {"params": params}, tmp_path / "trackers.log", told.append, patience)

    return started


def test_wandb_gets_configuration_and_numbers(tmp_path, start, told):
    sink = start("wandb", "trial", **{"optim.base_lr": 0.5, "log.mlflow": None})
    rows = [{"draw": 64 * n, "loss": n / 3, "lr": 1e-4} for n in range(3000)]  # more than a block of its file
    for row in rows:
        sink.write(row["draw"], {key: value for key, value in row.items() if key != "draw"})
    sink.close()
    assert told == []
    (run,) = wandb_runs(tmp_path)
    assert (run["id"], run["name"], run["project"]) == ("abc", "first", "trial")
    assert run["config"]["optim.base_lr"] == 0.5
    assert run["history"] == rows


def test_a_signal_to_all_processes_loses_nothing(tmp_path, start, told):
    sink = start("wandb", "trial")
    sink.write(64, {"loss": 0.5})
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("wandb/offline-run-*/*.wandb")) and time.monotonic() < deadline:
        time.sleep(0.05)  # until it has begun there
    for number in (signal.SIGTERM, signal.SIGINT):
        os.killpg(sink._process.pid, number)  # as SLURM does, wandb's own process included
    sink.write(128, {"loss": 0.25})
    sink.close()
    assert told == []
    assert [row["loss"] for row in wandb_runs(tmp_path)[0]["history"]] == [0.5, 0.25]


def test_mlflow_goes_on_in_the_same_run_and_leaves_out_what_is_repeated(tmp_path, start, told, monkeypatch):
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
    assert told == []
    (run,) = mlflow_runs(uri)
    assert (run["id"], run["name"], run["status"]) == ("abc", "first", "FINISHED")
    assert run["params"] == {f"section.key{n}": str(n) for n in range(120)}
    assert run["metrics"] == {
        "loss": [(8 * n, n / 2) for n in range(9)],
        "window": [(8 * n, n) for n in range(3, 9)],
        "knn/nn": [(40, 0.25), (40, 0.5)],
    }


@pytest.mark.parametrize("service", ["wandb", "mlflow"])
def test_a_server_that_says_nothing_is_left(service, start, told, monkeypatch):
    server, address = silent_server()
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", address)
    monkeypatch.setenv("WANDB_API_KEY", 40 * "a")
    with server:
        sink = start(service, "trial" if service == "wandb" else address, patience=3.0)
        began = time.monotonic()
        for n in range(20_000):
            sink.write(n, {"loss": n / 2})
        assert time.monotonic() - began < 30  # where each line would wait 3 s
        assert told == []
        began = time.monotonic()
        sink.close()
        assert 2 < time.monotonic() - began < 15  # of the 20 that it would else take
    (line,) = told
    assert line.startswith(
        f"{service} goes without the rest: it has not taken everything in time; metrics.jsonl has it"
    )
    sink.write(1, {"loss": 1.0})
    sink.close()
    assert len(told) == 1


def test_a_server_that_is_not_there_is_told_once(tmp_path, start, told, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    sink = start("mlflow", closed_port())
    deadline = time.monotonic() + 60
    while not told and time.monotonic() < deadline:
        sink.write(1, {"loss": 1.0})
        time.sleep(0.05)
    for _ in range(3):
        sink.write(2, {"loss": 1.0})
    sink.close()
    (line,) = told
    assert line.startswith("mlflow goes without the rest: API request to ")
    assert "\n" not in line
    assert "Connection refused" in (tmp_path / "trackers.log").read_text()


def test_what_is_sent_before_the_end_of_a_short_run_is_complained_about_too(start, told, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", "/nonexistent")
    sink = start("wandb", "trial")
    sink.close()
    (line,) = told
    assert line.startswith("wandb goes without the rest: No API key configured")


def test_numbers_that_nobody_takes_have_an_end(tmp_path, start, told, monkeypatch):
    deaf = tmp_path / "deaf"
    deaf.write_text("#!/bin/sh\nexec sleep 60\n")
    deaf.chmod(0o700)
    monkeypatch.setattr("sys.executable", str(deaf))
    monkeypatch.setattr("mimcl.model.trackers._LONGEST", 100_000)
    sink = start("mlflow", "nowhere")
    for n in range(9):
        assert told == []
        sink.write(n, {"x" * 20_000: 1.0})  # a pipe holds 65,536 bytes
    (line,) = told
    assert "it has taken nothing for long" in line
    sink.write(9, {"loss": 1.0})
    sink.close()
    assert len(told) == 1
