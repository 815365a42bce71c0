"""Train the demo's runs at the same time, each in a process with its part of the cores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

from mimcl.cli.bars import image_bar
from mimcl.cli.compare.children import ChildError, command, run_to_end
from mimcl.cli.console import warn_before_exit
from mimcl.cli.errors import Stopped
from mimcl.cli.report.read import read_run
from mimcl.cli.run.signals import StopSignals
from mimcl.pipeline.cores import arithmetic_threads
from mimcl.pipeline.files import DataError

_POLL_SECONDS = 1.0


def log_of(run: Path) -> Path:
    """The file that the process of a run prints to."""
    return run.with_name(f"{run.name}.log")


def train_side_by_side(runs: Mapping[Path, Sequence[str]], draws: int) -> None:
    """Run `mimcl train` with these arguments for each run folder, each of `draws` draws, with one progress bar.

    So small a model hardly gains from a second thread (tools/bench/threads.txt): two processes with one thread each are
    faster than one after the other with two. If one fails, the others are stopped and ChildError is raised; after a
    signal all runs are saved and Stopped is raised.
    """
    threads, shown = arithmetic_threads(len(runs)), 0
    with (
        StopSignals(warn_before_exit) as signals,
        ThreadPoolExecutor(len(runs)) as pool,
        image_bar("training", draws * len(runs)) as advance,
    ):
        signals.disable_timeout()  # a run decides how long it takes to save
        trainings = [
            pool.submit(run_to_end, command("train", *arguments), log_of(run), signals, threads)
            for run, arguments in runs.items()
        ]
        running = set(trainings)
        while running:
            finished, running = wait(running, _POLL_SECONDS)
            if any(training.exception() for training in finished):
                signals.requested = True
            done = sum(_position(run) for run in runs)
            advance(done - shown)
            shown = done
    errors = [error for training in trainings if (error := training.exception())]
    if errors:
        failures = [error for error in errors if isinstance(error, ChildError)]
        raise failures[0] if failures else Stopped("asked to stop; delete the demo's folder and run it again")


def _position(run: Path) -> int:
    """Return the last logged draw, 0 before the first."""
    try:
        return read_run(run).draws
    except DataError:
        return 0
