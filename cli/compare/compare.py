"""`mimcl compare`: arms against one another, over seeds, at equal samples or time. This is how claims are made."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mimcl.cli.errors import STOPPED_EXIT_CODE

if TYPE_CHECKING:
    from mimcl.cli.compare.comparison import Comparison
    from mimcl.cli.compare.trials import Trials
    from mimcl.cli.run.signals import StopSignals

EVALUATIONS = ("knn", "linear", "few-shot")  # commands of mimcl eval; their lines have _ for -
_FORMAT = "mimcl-comparison/1"


@dataclass(frozen=True)
class CompareConfig:
    """What is compared. `arms` are names with settings, as `arms` in cli/compare/arms.py reads them; the first is A."""

    recipe: str
    arms: Mapping[str, Mapping[str, Any]]
    seeds: int = 3
    budget: Literal["samples", "time"] = "samples"
    settings: Mapping[str, Any] = field(default_factory=dict)  # dotted keys, for all arms
    out: Path | None = None
    evaluations: Sequence[str] = ("knn",)
    processes: int = 1


def compare_command(
    recipe: Annotated[str, typer.Option(help="auto, mae_b16, mae_l16, mae_h14, cifar_tiny or cpu_small.")],
    arms: Annotated[
        str,
        typer.Option(
            help="What is compared, by commas; the first is what the others are held against. Each is "
            "DATA[+MASKING][+SCHEDULE]. DATA: epochs (plain MAE), uniform (with replacement), proto or anti; MASKING: "
            "block, grid, hpm or cl-mae; SCHEDULE: linear, step, ... For example uniform,epochs,proto,proto+hpm."
        ),
    ],
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each arm: seeds 0 to N - 1.")] = 3,
    budget: Annotated[
        str,
        typer.Option(help="samples: equal draws; time: equal training time, by a short run of each arm."),
    ] = "samples",
    epochs: Annotated[
        float | None, typer.Option(help="Length of a run; by time, of the first arm's. (default: the recipe's)")
    ] = None,
    data: Annotated[str | None, typer.Option(help="Folder of shards. (default: shards)")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of all runs. (default: comparisons/RECIPE)")] = None,
    evaluations: Annotated[str, typer.Option("--eval", help="knn, linear, few-shot, by commas; or ''.")] = "knn",
    online_knn: Annotated[
        float | None,
        typer.Option(metavar="N", help="Look up neighbours every N epochs, and at the end. (default: never)"),
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="Of each training and evaluation, by torchrun: one a GPU.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the runs and their commands; do nothing.")] = False,
    settings: Annotated[list[str] | None, typer.Option("--set", help="section.key=value, for all arms.")] = None,
) -> None:
    """Train arms against one another over several seeds, evaluate them, and report means with confidence intervals.

    The same command goes on where it was stopped; arms may be added and --seeds raised. Beside the runs, --out gets
    comparison.json and report.html. Ctrl-C or SIGTERM ends it, saved, with exit code 75.
    """
    from mimcl.cli.compare.arms import arms as read_arms
    from mimcl.cli.compare.children import StoppedError
    from mimcl.cli.config import parse_settings
    from mimcl.cli.errors import ConfigError

    if budget not in ("samples", "time"):
        raise ConfigError(f"--budget is {budget!r}; choose samples or time")
    judged = [name.strip() for name in evaluations.split(",") if name.strip()]
    if unknown := [name for name in judged if name not in EVALUATIONS]:
        raise ConfigError(f"--eval {unknown[0]!r}: choose of {', '.join(EVALUATIONS)}")
    values = parse_settings(settings or [])
    for key, name, value in (
        ("data.root", "--data", data),
        ("trainer.epochs", "--epochs", epochs),
        ("seed", "--seeds", None),
        ("trainer.online_knn_epochs", "--online-knn", online_knn),
    ):
        if key in values:
            raise ConfigError(f"--set {key}: give it with {name}")
        if value is not None:
            values[key] = value
    config = CompareConfig(recipe, read_arms(arms), seeds, budget, values, out, judged, processes)
    if dry_run:
        return print_plan(config)
    try:
        compare(config)
    except StoppedError:
        typer.echo(f"stopped and saved; go on with the same command: mimcl {shlex.join(sys.argv[1:])}", err=True)
        raise typer.Exit(STOPPED_EXIT_CODE) from None


def compare(config: CompareConfig) -> Comparison:
    """Trains what is left to train, evaluates, and writes OUT/comparison.json and OUT/report.html.

    Every run is a process of its own, in OUT/ARM-seedS, which prints to OUT/ARM-seedS.log. Raises StoppedError after a
    signal, ChildError when a run fails, ConfigError when OUT has another comparison or a run with other settings, and
    what is wrong with data and prototypes, before anything is trained.
    """
    from mimcl.cli.compare.comparison import compare_figures, figures, show, unequal_time, write_comparison
    from mimcl.cli.compare.evaluations import judge
    from mimcl.cli.console import console, warn, warn_before_exit
    from mimcl.cli.report.writer import write_report
    from mimcl.cli.run.folder import claimed
    from mimcl.cli.run.signals import StopSignals

    trials, head = _prepare(config)
    found = []
    with claimed(trials.out), StopSignals(warn_before_exit) as signals:
        signals.disable_timeout()  # a run that was asked to stop saves; how long it may take is its own affair
        epochs = _epochs(config, trials, head, signals)
        runs = trials.runs(config.seeds, epochs)
        done = {run.folder for run in runs if run.is_done(trials.index.samples)}
        for number, run in enumerate(runs, 1):
            what = f"{run.arm}, seed {run.seed} ({number} of {len(runs)})"
            if run.folder not in done:
                console.print(f"training {what}, {epochs[run.arm]:g} epochs: {run.log}")
                trials.start(run.arguments, run, signals)
            judge(run, what, config.evaluations, trials, head["protocols"], signals)
            found.append(figures(run.arm, run.seed, run.folder, head["protocols"]))
            write_comparison(trials.out / "comparison.json", head, compare_figures(found))
        for run in runs:  # once more, in case that an evaluation's defaults changed between the first and the last
            what = f"{run.arm}, seed {run.seed}, like the last"
            judge(run, what, config.evaluations, trials, head["protocols"], signals)
        comparison = compare_figures([figures(run.arm, run.seed, run.folder, head["protocols"]) for run in runs])
        write_comparison(trials.out / "comparison.json", head, comparison)
        page = write_report([run.folder for run in runs], trials.out / "report.html", [run.arm for run in runs])
    show(comparison)
    if config.budget == "time" and (complaint := unequal_time(comparison)):
        warn(complaint)
    if any(its["curriculum.name"] != "none" for its in config.arms.values()):
        console.print("making the prototypes, once for all runs, is not counted")
    console.print(f"{page}\n{trials.out / 'comparison.json'}")
    return comparison


def print_plan(config: CompareConfig) -> None:
    """Prints the commands that `compare` would run, those that are done included; writes nothing."""
    from mimcl.cli.compare.evaluations import judging
    from mimcl.cli.compare.pilot import equal_time
    from mimcl.cli.console import console

    trials, head = _prepare(config)
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
            console.print(shlex.join(trials.command(judging(evaluation, run, trials))))


def _prepare(config: CompareConfig) -> tuple[Trials, dict[str, Any]]:
    """The runs to be, and what comparison.json begins with. Raises ConfigError when OUT holds something else."""
    from mimcl.cli.compare.evaluations import of_this_data
    from mimcl.cli.compare.trials import Trials
    from mimcl.cli.errors import ConfigError

    judged, settings = bool(config.evaluations), dict(config.settings)
    trials = Trials.prepare(config.recipe, config.arms, settings, config.out, judged, config.processes)
    head = {
        "format": _FORMAT,
        "recipe": trials.base.recipe,
        "budget": config.budget,
        "epochs": trials.base.trainer.epochs,
        "seconds_per_step": {},
        "protocols": {},  # how this comparison judges: settings and index of its lines, by evaluation
    }
    out = trials.out
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        try:
            known = {"protocols": {}} | json.loads((out / "comparison.json").read_text())
            known = {key: known[key] for key in head}
            known["seconds_per_step"] = {arm: float(took) for arm, took in known["seconds_per_step"].items()}
            known["protocols"] = of_this_data(known["protocols"], trials.labelled)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise ConfigError(f"{out} exists and is no comparison; give another --out") from None
        for key in ("format", "recipe", "budget", "epochs"):
            if known[key] != head[key]:
                raise ConfigError(
                    f"{key} is {head[key]!r} but the comparison in {out} has {known[key]!r}; give another --out"
                )
        head = known
    return trials, head


def _epochs(config: CompareConfig, trials: Trials, head: dict[str, Any], signals: StopSignals) -> dict[str, float]:
    """The length of each arm; by time, each that has not been measured yet is, on a machine that should be idle."""
    from mimcl.cli.compare.comparison import note
    from mimcl.cli.compare.pilot import equal_time, seconds_per_step
    from mimcl.cli.console import console
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
            note(trials.out, seconds_per_step=measured)
        shutil.rmtree(pilot.folder)
    epochs = equal_time(length, measured, list(config.arms))
    for arm, its in epochs.items():
        console.print(f"{arm}: {1000 * measured[arm]:.1f} ms a step, so {its:g} epochs")
    return epochs
