"""The page that compares runs: means with intervals, samples to reach A's accuracy, curves, and differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mimcl.cli.config import as_yaml
from mimcl.cli.console import format_duration
from mimcl.cli.report import formatting
from mimcl.cli.report.chart import Chart
from mimcl.cli.report.compared import Measurement, compared_charts, describe_settings, measurements
from mimcl.cli.report.links import report_link
from mimcl.cli.report.run_record import RunRecord
from mimcl.cli.report.samples_to_target import SamplesToTarget, samples_to_target
from mimcl.cli.report.several import Arm, data_fingerprints, differing_keys
from mimcl.cli.suggest import command

_NO_CONTROL = (
    "A curriculum also draws fewer distinct images, which may change results by itself. Its control, --curriculum "
    "subset or the arm subset of a comparison, draws as many, at random."
)


@dataclass(frozen=True)
class RunRow:
    """A row of the table of runs."""

    folder: str
    link: str | None  # to its own report
    label: str
    group: int
    seed: str
    samples: str
    time: str
    rate: str
    wait: str
    loss: str


@dataclass(frozen=True)
class SeveralPage:
    """The content of several.html.j2."""

    title: str
    subtitle: str
    arms: list[Arm]
    runs: list[RunRow]
    measurements: list[Measurement]
    to_target: SamplesToTarget | None
    target_settings: str  # of the evaluation whose accuracy is the target
    charts: list[Chart]
    differing: list[tuple[str, list[str]]]  # key, value of each arm
    warnings: list[str]
    report: str  # the command that writes a run's own report
    evaluate: str  # the command that evaluates a checkpoint
    remark: str  # on what the comparison shows; empty for none


def several_page(arms: Sequence[Arm], out: Path) -> SeveralPage:
    """Build the page, to be written to `out`, from the runs' folders."""
    runs = [run for arm in arms for run in arm.runs]
    to_target = samples_to_target(arms)
    rows = [_row(run, arm.label, group, out) for group, arm in enumerate(arms) for run in arm.runs]
    differing = []
    for key in differing_keys(runs):
        values = [dict.fromkeys(as_yaml(run.config.get(key)) for run in arm.runs) for arm in arms]
        differing.append((key, [", ".join(value) for value in values]))
    curricula = {run.config.get("curriculum.name") for run in runs}
    seeds = sorted({len(arm.runs) for arm in arms})
    per_arm = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    return SeveralPage(
        title=" against ".join(arm.label for arm in arms) if len(arms) <= 3 else f"{len(arms)} arms",
        subtitle=f"{len(runs)} runs in {len(arms)} {'arm' if len(arms) == 1 else 'arms'}, seeds in each: {per_arm}",
        arms=list(arms),
        runs=rows,
        measurements=measurements(arms),
        to_target=to_target,
        target_settings=f"{to_target.key.name}, {describe_settings(to_target.key)}".rstrip(", ") if to_target else "",
        charts=compared_charts(arms),
        differing=differing,
        warnings=_warnings(arms, runs),
        report=command("report", "RUN"),
        evaluate=command("eval knn", "RUN/checkpoints/STEP"),
        remark=_NO_CONTROL if {"proto", "anti"} & curricula and "subset" not in curricula else "",
    )


def _row(run: RunRecord, label: str, group: int, out: Path) -> RunRow:
    return RunRow(
        str(run.folder),
        report_link(run.folder, out),
        label,
        group,
        as_yaml(run.config.get("seed")),
        f"{run.draws:,}",
        format_duration(run.seconds[-1]),
        formatting.number(run.throughput),
        formatting.percent(run.data_wait),
        formatting.number(run.final_loss),
    )


def _warnings(arms: Sequence[Arm], runs: Sequence[RunRecord]) -> list[str]:
    found = []
    if len(data_fingerprints(runs)) > 1:
        found.append("these runs were not trained on the same data: their index fingerprints differ")
    if len({str(run.folder.resolve()) for run in runs}) < len(runs):
        found.append("a run was given twice, which makes the standard deviation too small")
    for arm in arms:
        seeds = [run.config.get("seed") for run in arm.runs]
        if len(set(map(repr, seeds))) < len(seeds):
            found.append(f"{arm.label}: runs with the same seed are not independent repetitions")
        if len({run.draws for run in arm.runs}) > 1:
            lengths = ", ".join(f"{run.draws:,}" for run in arm.runs)
            found.append(f"{arm.label}: its runs have different lengths: {lengths} samples")
        if keys := differing_keys(arm.runs):
            found.append(f"{arm.label}: its runs differ in {', '.join(keys[:5])}")
    if len({run.draws for run in runs}) > 1 and not any("lengths" in line for line in found):
        found.append("the arms have different lengths: final values are not at the same number of samples")
    for run in runs:
        if run.damaged_lines:
            found.append(f"{run.folder}: unreadable lines of metrics.jsonl, skipped: {run.damaged_lines:,}")
    return found
