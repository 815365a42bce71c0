"""The page of one run: key figures, charts, tables, pictures, and what could not be shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from mimcl.cli.errors import ConfigError
from mimcl.cli.report import charts
from mimcl.cli.report.balance import ClassBalance, class_balance, open_shards
from mimcl.cli.report.chart import Chart
from mimcl.cli.report.distance_chart import distance_chart
from mimcl.cli.report.evaluation_tables import EvaluationTable, evaluation_tables
from mimcl.cli.report.figures import Figure, key_figures
from mimcl.cli.report.in_words import subtitle, summary
from mimcl.cli.report.links import comparison_link
from mimcl.cli.report.masking_charts import masking_charts
from mimcl.cli.report.picture_rows import ModelRows, cluster_rows, model_rows
from mimcl.cli.report.pictures import Row
from mimcl.cli.report.run_prototypes import RunPrototypes, load_prototypes
from mimcl.cli.report.run_record import RunRecord
from mimcl.cli.report.settings import Setting, settings, train_command_line
from mimcl.cli.suggest import command
from mimcl.curriculum.prototypes import PrototypeError
from mimcl.model.checkpoint import CheckpointError
from mimcl.pipeline.files import DataError
from mimcl.pipeline.index import ShardIndex

T = TypeVar("T")
_MAX_CLASSES = 30  # that get a bar each


@dataclass
class RunPage:
    """The content of single.html.j2; `missing` has a line for each part that could not be shown."""

    title: str
    subtitle: str
    summary: str  # a sentence on what was trained
    figures: list[Figure]
    training: list[Chart]
    curriculum: list[Chart]
    masking: list[Chart]
    evaluation: list[Chart]
    tables: list[EvaluationTable]
    settings: dict[str, list[Setting]]
    command: str  # that trains the run again
    compare: str  # the command that compares it with another run
    comparison: str | None  # link to the comparison that the run belongs to
    draws: list[Chart] = field(default_factory=list)
    balance: ClassBalance | None = None
    pictures: ModelRows = field(default_factory=ModelRows)
    clusters: list[Row] = field(default_factory=list)
    scores: str = ""  # the name of the scores that order the images, instead of distances to prototypes
    warnings: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    @property
    def balance_has_bars(self) -> bool:
        return self.balance is not None and len(self.balance.names) <= _MAX_CLASSES

    @property
    def balance_explained(self) -> str:
        return charts.BALANCE_EXPLAINED

    @property
    def charts(self) -> list[Chart]:
        """In the order of the page."""
        return [*self.training, *self.curriculum, *self.draws, *self.masking, *self.evaluation]


def run_page(run: RunRecord, out: Path, pictures: bool = True) -> RunPage:
    """Build the page, to be written to `out`, from the run's folder, and from its shards if they are available."""
    by_section: dict[str, list[Setting]] = {}
    for setting in settings(run.config, run.images):
        by_section.setdefault(setting.section, []).append(setting)
    page = RunPage(
        title=run.name,
        subtitle=subtitle(run),
        summary=summary(run),
        figures=key_figures(run),
        training=charts.training_charts(run),
        curriculum=charts.curriculum_charts(run),
        masking=masking_charts(run),
        evaluation=charts.evaluation_charts(run),
        tables=evaluation_tables(run.evaluations),
        settings=by_section,
        command=train_command_line(run.config),
        compare=command("report", run.folder, "OTHER"),
        comparison=comparison_link(run.folder, out),
        warnings=_warnings(run),
    )
    if not page.tables:
        knn, rank = command("eval knn", run.folder), command("eval rank", run.folder)
        page.missing.append(f"evaluations: none yet; run `{knn}`, or without labels `{rank}`")
    if run.counts is None:
        page.missing.append("how often images were drawn: no draw_counts.npy before the first checkpoint")
    else:
        page.draws.append(charts.draw_counts_chart(run.counts))
    what = "class balance, distances and pictures"
    if index := _or_missing(page, what, lambda: open_shards(run.config, run.fingerprints)):
        _add_shard_parts(page, run, index, pictures)
    return page


def _add_shard_parts(page: RunPage, run: RunRecord, index: ShardIndex, pictures: bool) -> None:
    if run.counts is not None:
        counts = run.counts
        page.balance = _or_missing(page, "class balance", lambda: class_balance(index, counts))
        if page.balance and not page.balance_has_bars:
            page.draws.append(charts.balance_chart(page.balance))
    prototypes = None
    if run.config.get("curriculum.name") in ("proto", "anti"):
        prototypes = _or_missing(page, "distances and prototypes", lambda: load_prototypes(run, index))
    if prototypes:
        page.scores = prototypes.scores
        _add_distances(page, run, prototypes)
    if not pictures:
        page.missing.append(f"pictures: not drawn, to save time; run `{command('report', run.folder)}`")
        return
    if prototypes:
        page.clusters = _or_missing(page, "prototypes", lambda: cluster_rows(index, prototypes)) or []
    if not run.checkpoints:
        page.missing.append("reconstructions and features: no checkpoint yet")
    elif found := _or_missing(page, "reconstructions and features", lambda: model_rows(run, index, prototypes)):
        page.pictures = found
        page.missing += [f"reconstructions: {line}" for line in found.missing]


def _add_distances(page: RunPage, run: RunRecord, prototypes: RunPrototypes) -> None:
    if len(run.windows):
        chart = _or_missing(page, "histogram of distances", lambda: distance_chart(run.windows, prototypes))
        page.curriculum[:0] = [chart] if chart else []


def _or_missing(page: RunPage, what: str, make: Callable[[], T]) -> T | None:
    try:
        return make()
    except (DataError, CheckpointError, PrototypeError, ConfigError, OSError, ValueError, KeyError) as error:
        page.missing.append(f"{what}: {' '.join((str(error) or type(error).__name__).split())}")
        return None


def _warnings(run: RunRecord) -> list[str]:
    found = []
    if skipped := int(np.nansum(run.steps["nonfinite_steps"])):
        found.append(f"steps skipped because the gradient was not finite: {skipped:,}; see {run.folder}/nonfinite")
    if run.bad_samples:
        found.append(f"bad samples that were replaced: {run.bad_samples:,}; see {run.folder}/quarantine.jsonl")
    if run.damaged_lines:
        found.append(f"unreadable lines of metrics.jsonl, skipped: {run.damaged_lines:,}")
    return found
