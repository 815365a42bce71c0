"""Train and compare arms, seeds in turn, until the time is up; every finished run is on disk at once."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
from gpu.evidence_data import unpacked

from mimcl.api import ChildError, ConfigError, DataError, PrototypeError, StoppedError
from mimcl.cli.compare.arms import arms as read_arms
from mimcl.cli.compare.compare_config import CompareConfig
from mimcl.cli.compare.comparison import Comparison
from mimcl.cli.compare.pilot import STEPS, WARM_STEPS, pilot_settings, seconds_per_step
from mimcl.cli.compare.run_comparison import run_comparison
from mimcl.cli.compare.table import print_table
from mimcl.cli.compare.trials import Trial, Trials
from mimcl.cli.config import parse_settings
from mimcl.cli.console import console, warn, warn_before_exit
from mimcl.cli.run.folder import claimed
from mimcl.cli.run.signals import StopSignals
from mimcl.pipeline.files import atomic_file, write_json

ARMS = ("subset", "proto", "epochs")  # the first is the baseline: as few images, but random ones
RECIPE = "cifar_tiny"
_SETTINGS = {"data.keep_decoded": True, "data.decoder": "reference"}
_AT_THE_END = 1e6  # epochs between evaluations: none but the one after the last step
_RESULTS, _TABLE = "results.jsonl", "table.txt"
_SAVING_S = 10.0  # reserved for a run that has to be stopped
_IN_USE_S = 60.0  # that runs of a killed evidence.py may need to save


def run(
    data: Path,
    out: Path,
    seconds: float,
    seeds: int,
    epochs: float | None,
    most_seeds: int | None,
    settings: list[str],
) -> int:
    """Compare the arms on `data`, in `out`, and return the exit code. The same call continues what was stopped."""
    deadline = time.monotonic() + seconds - _SAVING_S
    signal.signal(signal.SIGTERM, _stop)  # while a comparison runs it has a handler of its own
    timer = threading.Timer(max(0.0, deadline - time.monotonic()), os.kill, (os.getpid(), signal.SIGTERM))
    timer.daemon = True
    timer.start()
    try:
        shards = unpacked(data, out)
        values = {"data.root": str(shards), **_SETTINGS, **parse_settings(settings)}
        values |= {"trainer.online_knn_epochs": _AT_THE_END}
        plan = _plan(out, values, deadline, seeds, epochs)
        _compare(out, values | {"trainer.epochs": plan["epochs"]}, plan, deadline, most_seeds)
    except StoppedError:
        print("evidence: stopped and saved; the same command continues", flush=True)
    except (ConfigError, DataError, PrototypeError, ChildError, OSError) as error:
        print(f"evidence: {error}", file=sys.stderr)
        return 1
    finally:
        timer.cancel()
    if (table := out / _TABLE).exists():
        print(f"{table.read_text()}\nresults: {out / _RESULTS}", flush=True)
    return 0


def _stop(*_: object) -> None:
    raise StoppedError


def _compare(out: Path, values: dict[str, Any], plan: dict[str, Any], deadline: float, most_seeds: int | None) -> None:
    folder, finished = out / "comparison", 0
    _wait_for_runs(folder)
    with contextlib.suppress(FileNotFoundError):
        finished = len((out / _RESULTS).read_text().splitlines()) - 1
    seeds = finished // len(ARMS)
    arms = read_arms(",".join(ARMS))
    while time.monotonic() < deadline and (most_seeds is None or seeds < most_seeds):
        seeds += 1
        config = CompareConfig(RECIPE, arms, seeds, settings=values, out=folder, evaluations=())
        run_comparison(config, lambda comparison: _record(out, plan, comparison))


def _record(out: Path, plan: dict[str, Any], comparison: Comparison) -> None:
    """Write and print the runs so far."""
    rows = [plan]
    for found in comparison.runs:
        qualities = {quality.name: value for quality, value in found.qualities.items()}
        rows.append(
            {"arm": found.arm, "seed": found.seed, "draws": found.draws, **qualities}
            | {"loss": found.loss, "seconds": found.seconds}
        )
    with atomic_file(out / _RESULTS) as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows).encode())
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        print_table(comparison)
    with atomic_file(out / _TABLE) as file:
        file.write(f"{json.dumps(plan)}\n{text.getvalue()}".encode())
    if len(comparison.runs) % len(ARMS):  # after the last arm the comparison prints it
        print(text.getvalue(), flush=True)


def _plan(out: Path, values: dict[str, Any], deadline: float, seeds: int, epochs: float | None) -> dict[str, Any]:
    """Return what was measured and planned when `out` was new: the epochs of a run, and how long it takes."""
    path = out / "plan.json"
    if path.exists():
        plan = json.loads(path.read_bytes())
        if epochs not in (None, plan["epochs"]):
            raise ConfigError(f"--epochs is {epochs:g} but the runs in {out} have {plan['epochs']:g}; leave it out")
        return plan
    trials = Trials.prepare(RECIPE, read_arms(",".join(ARMS)), values, out / "pilot", False, 1)
    samples, batch_size = trials.index.samples, trials.base.data.batch_size
    step_s, beside_s = _measure(trials, out / "pilot", values)
    if epochs is None:
        each = (deadline - time.monotonic()) / (seeds * len(ARMS)) - beside_s
        epochs = max(0.1, math.floor(10 * each / (step_s * samples / batch_size)) / 10)
    plan = {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "torch": torch.__version__,
        "recipe": RECIPE,
        "settings": {key: value for key, value in values.items() if key != "data.root"},
        "samples": samples,
        "epochs": epochs,
        "step_ms": round(1e3 * step_s, 2),
        "seconds_beside_steps": round(beside_s, 1),
    }
    write_json(path, plan)
    return plan


def _measure(trials: Trials, folder: Path, values: dict[str, Any]) -> tuple[float, float]:
    """Return the seconds of a step, and those of a run besides: start, decoding, evaluation."""
    short = pilot_settings(trials.base.data.batch_size, trials.index.samples)
    short["trainer.online_knn_epochs"] = _AT_THE_END
    pilot = Trial(ARMS[0], 0, folder / "run", RECIPE, {"report": False, **values, "seed": 0, **short})
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    started = time.monotonic()
    with StopSignals(warn_before_exit) as signals:
        trials.start(pilot.arguments, pilot, signals)
    step_s = seconds_per_step(pilot.folder)
    console.print(f"{1e3 * step_s:.1f} ms per step, from the {STEPS - WARM_STEPS} steps of a short run")
    beside_s = max(0.0, time.monotonic() - started - STEPS * step_s)
    shutil.rmtree(folder)
    return step_s, beside_s


def _wait_for_runs(folder: Path) -> None:
    """Wait for a run that a killed process has left behind: it has been asked to stop, and saves."""
    until = time.monotonic() + _IN_USE_S
    for path in sorted(folder.glob("*-seed*/")):
        while True:
            try:
                with claimed(path):
                    break
            except ConfigError:
                if time.monotonic() > until:
                    raise
            warn(f"waiting for {path.name}, which another process is saving")
            time.sleep(1)
