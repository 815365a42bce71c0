"""The page of several runs: means with their spread, the way to A's accuracy, curves, and what differs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mimcl.cli.console import format_duration
from mimcl.cli.report import formatting
from mimcl.cli.report.charts import Chart
from mimcl.cli.report.compared import Measurement, compared_charts, describe, measurements
from mimcl.cli.report.read import RunRecord
from mimcl.cli.report.samples_to_target import Races, races
from mimcl.cli.report.settings import as_yaml
from mimcl.cli.report.several import Arm, data_sets, differences
from mimcl.cli.report.single import data_wait, throughput


@dataclass(frozen=True)
class RunRow:
    """One run of the page."""

    folder: str
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
    """What the template shows."""

    title: str
    subtitle: str
    arms: list[Arm]
    runs: list[RunRow]
    measurements: list[Measurement]
    races: Races | None
    races_settings: str
    curves: list[tuple[str, list[Chart]]]
    differing: list[tuple[str, list[str]]]  # key, value of each arm
    warnings: list[str]

    @property
    def charts(self) -> list[Chart]:
        """In the order of the page."""
        return [chart for _, group in self.curves for chart in group]


def several_page(arms: Sequence[Arm]) -> SeveralPage:
    """Everything that the runs' folders tell."""
    runs = [run for arm in arms for run in arm.runs]
    found = races(arms)
    rows = [_row(run, arm.label, group) for group, arm in enumerate(arms) for run in arm.runs]
    differing = []
    for key in differences(runs):
        values = [dict.fromkeys(as_yaml(run.config.get(key)) for run in arm.runs) for arm in arms]
        differing.append((key, [", ".join(value) for value in values]))
    seeds = sorted({len(arm.runs) for arm in arms})
    per_arm = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    return SeveralPage(
        title=" against ".join(arm.label for arm in arms) if len(arms) <= 3 else f"{len(arms)} arms",
        subtitle=f"{len(runs)} runs in {len(arms)} {'arm' if len(arms) == 1 else 'arms'}, seeds in each: {per_arm}",
        arms=list(arms),
        runs=rows,
        measurements=measurements(arms),
        races=found,
        races_settings=", ".join(part for part in (found.protocol[0], describe(found.protocol)) if part)
        if found
        else "",
        curves=compared_charts(arms),
        differing=differing,
        warnings=_warnings(arms, runs),
    )


def _row(run: RunRecord, label: str, group: int) -> RunRow:
    return RunRow(
        str(run.folder),
        label,
        group,
        as_yaml(run.config.get("seed")),
        f"{run.draws:,}",
        format_duration(run.seconds[-1]),
        formatting.number(throughput(run)),
        formatting.percent(data_wait(run)),
        formatting.number(run.final_loss),
    )


def _warnings(arms: Sequence[Arm], runs: Sequence[RunRecord]) -> list[str]:
    found = []
    if len(data_sets(runs)) > 1:
        found.append("these runs were not trained on the same data: the fingerprints of their indices differ")
    if len({str(run.folder.resolve()) for run in runs}) < len(runs):
        found.append("a run was given twice: the spread is too small")
    for arm in arms:
        seeds = [run.config.get("seed") for run in arm.runs]
        if len(set(map(repr, seeds))) < len(seeds):
            found.append(f"{arm.label}: runs with the same seed are no independent repetitions")
        if len({run.draws for run in arm.runs}) > 1:
            lengths = ", ".join(f"{run.draws:,}" for run in arm.runs)
            found.append(f"{arm.label}: its runs have come to different lengths: {lengths} samples")
        if keys := differences(arm.runs):
            found.append(f"{arm.label}: its runs differ in {', '.join(keys[:5])}")
    if len({run.draws for run in runs}) > 1 and not any("lengths" in line for line in found):
        found.append("arms have come to different lengths: final numbers are not at the same number of samples")
    for run in runs:
        if run.damaged:
            found.append(f"{run.folder}: lines of metrics.jsonl that cannot be read are left out: {run.damaged:,}")
    return found
