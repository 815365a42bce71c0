"""Runs a comparison: trains and evaluates its arms, one run after another."""

from __future__ import annotations

import shlex
import shutil
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mimcl.cli.compare.compare_config import CompareConfig

if TYPE_CHECKING:
    from mimcl.cli.compare.comparison import Comparison
    from mimcl.cli.compare.trials import Trials
    from mimcl.cli.run.signals import StopSignals


def run_comparison(config: CompareConfig, on_run: Callable[[Comparison], None] | None = None) -> Comparison:
    """Train and evaluate the unfinished runs, and write OUT/comparison.json and OUT/report.html.

    `on_run` is called after each run with the comparison of the runs so far, finished ones included.
    Every run is a process of its own with the folder OUT/ARM-seedS and the log OUT/ARM-seedS.log. Raises StoppedError
    after a signal and ChildError if a run fails; before anything is trained, ConfigError if OUT has another comparison
    or a run with other settings, and the errors of loading data and prototypes.
    """
    from mimcl.cli.compare.comparison import compare_figures, read_figures, unequal_time, write_comparison
    from mimcl.cli.compare.evaluations import evaluate_run
    from mimcl.cli.compare.prepare import prepare
    from mimcl.cli.compare.remaining import Remaining
    from mimcl.cli.compare.table import print_table
    from mimcl.cli.console import console, format_epochs, warn, warn_before_exit
    from mimcl.cli.report.read import read_run
    from mimcl.cli.report.writer import write_report
    from mimcl.cli.run.folder import claimed
    from mimcl.cli.run.signals import StopSignals

    trials, head = prepare(config)
    for line in trials.notes(config):
        console.print(line)
    found = []
    with claimed(trials.out), StopSignals(warn_before_exit) as signals:
        signals.disable_timeout()  # the running command decides how long it takes to save
        epochs = _epochs(config, trials, head, signals)
        runs = trials.runs(config.seeds, epochs)
        done = {run.folder for run in runs if run.is_done(trials.index.samples)}
        remaining = Remaining(head["seconds_per_step"], trials.base.data.batch_size)
        for run in runs:
            if run.folder in done:
                remaining.add(run.arm, read_run(run.folder))
        for number, run in enumerate(runs, 1):
            description = f"{run.arm}, seed {run.seed} ({number} of {len(runs)})"
            started = time.monotonic()
            if run.folder not in done:
                left = [(other.arm, trials.draws(other)) for other in runs[number - 1 :] if other.folder not in done]
                console.print(f"training {description}, {format_epochs(epochs[run.arm])}: {run.log}")
                if words := remaining(left):
                    console.print(f"  {words} for {len(left)} {'run' if len(left) == 1 else 'runs'}")
                trials.start(run.arguments, run, signals)
            evaluate_run(run, description, config.evaluations, trials, head["protocols"], signals)
            if run.folder not in done:
                remaining.add(run.arm, read_run(run.folder), time.monotonic() - started)
            found.append(read_figures(run.arm, run.seed, run.folder, head["protocols"]))
            so_far = compare_figures(found)
            write_comparison(trials.out / "comparison.json", head, so_far)
            if on_run:
                on_run(so_far)
        for run in runs:  # again, in case the defaults of an evaluation changed during the comparison
            description = f"{run.arm}, seed {run.seed} (again)"
            evaluate_run(run, description, config.evaluations, trials, head["protocols"], signals)
        comparison = compare_figures([read_figures(run.arm, run.seed, run.folder, head["protocols"]) for run in runs])
        write_comparison(trials.out / "comparison.json", head, comparison)
        page = write_report([run.folder for run in runs], trials.out / "report.html", [run.arm for run in runs])
    print_table(comparison)
    if config.budget == "time" and (warning := unequal_time(comparison)):
        warn(warning)
    if any(settings["curriculum.name"] in ("proto", "anti") for settings in config.arms.values()):
        console.print("training times do not include making the prototypes, which all runs share")
    console.print(f"wrote {trials.out}/comparison.json · report: {page}")
    return comparison


def print_plan(config: CompareConfig) -> Comparison:
    """Print the commands of all runs, including finished ones; write nothing, and return an empty comparison."""
    from mimcl.cli.compare.comparison import Comparison
    from mimcl.cli.compare.evaluations import evaluation_arguments
    from mimcl.cli.compare.pilot import equal_time
    from mimcl.cli.compare.prepare import prepare
    from mimcl.cli.console import console, warn

    trials, head = prepare(config)
    for line in trials.notes(config):
        warn(line)
    length, measured = trials.base.trainer.epochs, head["seconds_per_step"]
    epochs: dict[str, float | str] = dict.fromkeys(config.arms, length)
    if config.budget == "time":
        missing = [arm for arm in config.arms if arm not in measured]
        for pilot in trials.pilots(missing):
            console.print(shlex.join(trials.command(pilot.arguments)))
        first = next(iter(config.arms))
        epochs = dict.fromkeys(config.arms, "MEASURED") | {first: length}
        if first in measured:
            epochs |= equal_time(length, measured, [first, *(arm for arm in config.arms if arm in measured)])
    for run in trials.runs(config.seeds, epochs):
        console.print(shlex.join(trials.command(run.arguments)))
        for evaluation in config.evaluations:
            console.print(shlex.join(trials.command(evaluation_arguments(evaluation, run, trials))))
    return Comparison([], [])


def _epochs(config: CompareConfig, trials: Trials, head: dict[str, Any], signals: StopSignals) -> dict[str, float]:
    """Return the epochs of each arm; with --budget time, first measure the arms that have not been measured yet."""
    from mimcl.cli.compare.comparison import update_comparison
    from mimcl.cli.compare.pilot import equal_time, seconds_per_step
    from mimcl.cli.console import console, format_epochs
    from mimcl.pipeline.files import write_json

    length, measured = trials.base.trainer.epochs, head["seconds_per_step"]
    if not (trials.out / "comparison.json").exists():
        write_json(trials.out / "comparison.json", head)
    if config.budget == "samples":
        return dict.fromkeys(config.arms, length)
    for number, pilot in enumerate(trials.pilots([arm for arm in config.arms if arm not in measured])):
        console.print(f"{'measuring' if number else 'warming up with'} {pilot.arm}: {pilot.log}")
        shutil.rmtree(pilot.folder, ignore_errors=True)
        pilot.folder.parent.mkdir(exist_ok=True)
        trials.start(pilot.arguments, pilot, signals)
        if number:
            measured[pilot.arm] = seconds_per_step(pilot.folder)
            update_comparison(trials.out, seconds_per_step=measured)
        shutil.rmtree(pilot.folder)
    epochs = equal_time(length, measured, list(config.arms))
    for arm, length in epochs.items():
        console.print(f"{arm}: {1000 * measured[arm]:.1f} ms per step, {format_epochs(length)}")
    return epochs
