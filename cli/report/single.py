"""The page of one run: key figures, charts, tables, pictures, and what could not be shown."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from mimcl.cli.config import Config, override
from mimcl.cli.console import format_duration
from mimcl.cli.errors import ConfigError
from mimcl.cli.evenly_spaced import evenly_spaced
from mimcl.cli.report import charts, formatting
from mimcl.cli.report.balance import ClassBalance, class_balance, open_shards
from mimcl.cli.report.charts import Chart
from mimcl.cli.report.compared import describe
from mimcl.cli.report.pictures import Picture, Strip, gallery, reconstructions
from mimcl.cli.report.read import Evaluation, RunRecord
from mimcl.cli.report.settings import Setting, command, settings
from mimcl.cli.run.resolve import draws_of
from mimcl.cli.run.training_data import fingerprints
from mimcl.curriculum.prototypes import PrototypeError, PrototypeSet
from mimcl.model.checkpoint import CheckpointError
from mimcl.pipeline.files import DataError
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.verify_cache import check_once

T = TypeVar("T")
_MOST_ROWS = 12  # of an evaluation's table
_MOST_CLASSES = 30  # with a bar each


@dataclass(frozen=True)
class Figure:
    """A number at the top of the page."""

    label: str
    value: str
    detail: str


@dataclass(frozen=True)
class EvaluationTable:
    """One protocol: a row for each judged checkpoint."""

    name: str
    settings: str
    columns: list[str]
    rows: list[tuple[str, str, list[str]]]  # draws, checkpoint, values


@dataclass
class RunPage:
    """What the template shows. `missing` says, a line each, what could not be shown and why."""

    title: str
    subtitle: str
    figures: list[Figure]
    training: list[Chart]
    curriculum: list[Chart]
    masking: list[Chart]
    evaluation: list[Chart]
    tables: list[EvaluationTable]
    settings: dict[str, list[Setting]]
    command: str
    draws: list[Chart] = field(default_factory=list)
    balance: ClassBalance | None = None
    strips: list[Strip] = field(default_factory=list)
    gallery: Picture | None = None
    warnings: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    @property
    def balance_has_bars(self) -> bool:
        return self.balance is not None and len(self.balance.names) <= _MOST_CLASSES

    @property
    def charts(self) -> list[Chart]:
        """In the order of the page."""
        return [*self.training, *self.curriculum, *self.draws, *self.masking, *self.evaluation]


def run_page(run: RunRecord, pictures: bool = True) -> RunPage:
    """Everything that the run's folder, and its shards where they are still there, tell."""
    by_section: dict[str, list[Setting]] = {}
    for setting in settings(run.config, run.images):
        by_section.setdefault(setting.section, []).append(setting)
    page = RunPage(
        title=run.name,
        subtitle=_subtitle(run),
        figures=_figures(run),
        training=charts.training_charts(run),
        curriculum=charts.curriculum_charts(run),
        masking=charts.masking_charts(run),
        evaluation=charts.evaluation_charts(run),
        tables=_tables(run),
        settings=by_section,
        command=command(run.config),
        warnings=_warnings(run),
    )
    if not page.tables:
        page.missing.append(f"evaluations: there are none; mimcl eval knn {run.folder} makes one")
    if run.counts is None:
        page.missing.append("how often images were drawn: there is no draw_counts.npy yet; a checkpoint brings it")
    else:
        page.draws.append(charts.draw_counts_chart(run.counts))
    index = _or_missing(page, "class balance, reconstructions and gallery", lambda: open_shards(run.config, run.marks))
    if index is not None:
        _add_of_shards(page, run, index, pictures)
    return page


def _add_of_shards(page: RunPage, run: RunRecord, index: ShardIndex, pictures: bool) -> None:
    if run.counts is not None:
        page.balance = _or_missing(page, "class balance", lambda: class_balance(index, run.counts))
        if page.balance and not page.balance_has_bars:
            page.draws.append(charts.balance_chart(page.balance))
    if run.config.get("curriculum.name") != "none":
        page.gallery = _or_missing(page, "prototype gallery", lambda: _gallery(run, index))
    if not pictures:
        page.missing.append(f"reconstructions: left out to be quick; mimcl report {run.folder} draws them")
    elif not run.checkpoints:
        page.missing.append("reconstructions: there is no checkpoint yet")
    else:
        found = _or_missing(page, "reconstructions", lambda: reconstructions(run, index))
        if found:
            page.strips = found[0]
            page.missing += [f"reconstructions: {line}" for line in found[1]]


def _or_missing(page: RunPage, what: str, make: Callable[[], T]) -> T | None:
    try:
        return make()
    except (DataError, CheckpointError, PrototypeError, ConfigError, OSError, ValueError, KeyError) as error:
        page.missing.append(f"{what}: {' '.join((str(error) or type(error).__name__).split())}")
        return None


def _gallery(run: RunRecord, index: ShardIndex) -> Picture:
    folder = index.prototypes_folder(str(run.config["curriculum.prototypes"]))
    found = fingerprints(index, PrototypeSet.load(folder, index.fingerprint, check_once).distance)
    if run.marks.get("prototypes") not in (None, found["prototypes"]):
        raise DataError(f"{folder} is not what this run was trained with: it was built again since")
    return gallery(folder)


def _subtitle(run: RunRecord) -> str:
    c = run.config
    parts = [
        f"recipe {c.get('recipe')}",
        f"{c.get('model.name')}/{c.get('model.patch_size')} at {c.get('data.image_size')} px",
        f"curriculum {c.get('curriculum.name')}",
        f"masking {c.get('masking.name')} {c.get('masking.mask_ratio')}",
        f"batch {c.get('data.batch_size')}",
        f"seed {c.get('seed')}",
    ]
    return " · ".join(parts)


def total_draws(run: RunRecord) -> int | None:
    """Of the whole run; None where the number of images is not known."""
    if run.images is None:
        return None
    try:
        return draws_of(override(Config(), run.config), run.images)
    except ConfigError:
        return None


def data_wait(run: RunRecord) -> float:
    """Share of the run's time that was spent waiting for data."""
    seconds, waits = np.diff(run.seconds, prepend=0.0), run.steps["data_wait"]
    known = np.isfinite(seconds) & np.isfinite(waits)
    return float(np.average(waits[known], weights=seconds[known])) if seconds[known].sum() > 0 else math.nan


def throughput(run: RunRecord) -> float:
    """Images a second over the whole run."""
    return run.draws / float(run.seconds[-1]) if run.seconds[-1] > 0 else math.nan


def _figures(run: RunRecord) -> list[Figure]:
    losses = run.steps["loss"]
    total, seen = total_draws(run), formatting.short(run.draws)
    epochs = f"{run.draws / run.images:,.4g} epochs of {run.images:,} images" if run.images else "samples"
    if total and run.draws < total:
        epochs += f", {run.draws / total:.0%} of the run"
    elif total:
        epochs += ", the whole run"
    first = losses[np.isfinite(losses)][:1]
    found = [
        Figure(
            "final loss", formatting.number(run.final_loss), f"from {formatting.number(first[0])}" if len(first) else ""
        ),
        *_accuracy(run),
        Figure("samples seen", seen, epochs),
        Figure(
            "throughput",
            f"{formatting.number(throughput(run), 3)} img/s",
            f"{format_duration(run.seconds[-1])} of training",
        ),
        Figure("data-wait", formatting.percent(data_wait(run)), "of the time spent waiting for data"),
    ]
    if run.windows.has("effective_fraction"):
        last = run.windows["effective_fraction"]
        how = f"{run.config.get('curriculum.name')}, {run.config.get('curriculum.temp_schedule')}"
        began = f"from {formatting.percent(last[np.isfinite(last)][0])}"
        if run.config.get("curriculum.name") == "none":
            how, began = "no data curriculum", "uniform draws"
        found.append(Figure("effective fraction", formatting.percent(last[np.isfinite(last)][-1]), f"{began}; {how}"))
    if run.windows.has("coverage"):
        coverage, repeats = run.windows["coverage"][-1], run.windows["max_repeats"][-1]
        most = f"no image more than {repeats:,.0f} times" if math.isfinite(repeats) else ""
        value, share = formatting.percent(coverage), ""
        if run.images and math.isfinite(coverage):
            value, share = f"{coverage * run.images:,.0f}", f"{value} of {run.images:,}"
        found.append(Figure("distinct images", value, "; ".join(part for part in (share, most) if part)))
    return found


def _accuracy(run: RunRecord) -> list[Figure]:
    judged = [line for line in run.evaluations if "nn" in line.values]
    if not judged:
        return []
    line = max(judged, key=lambda line: (line.draw, line.name == "knn"))
    detail = f"at {formatting.short(line.draw)} samples"
    if "untrained_nn" in line.values:
        detail = f"untrained {formatting.percent(line.values['untrained_nn'])}; {detail}"
    return [Figure("nearest neighbour", formatting.percent(line.values["nn"]), detail)]


def _warnings(run: RunRecord) -> list[str]:
    found = []
    if skipped := int(np.nansum(run.steps["nonfinite_steps"])):
        found.append(f"steps skipped for want of a finite gradient: {skipped:,}; see {run.folder}/nonfinite")
    if run.bad_samples:
        found.append(f"bad samples replaced by others: {run.bad_samples:,}; see {run.folder}/quarantine.jsonl")
    if run.damaged:
        found.append(f"lines of metrics.jsonl that cannot be read and are left out: {run.damaged:,}")
    return found


def _tables(run: RunRecord) -> list[EvaluationTable]:
    lines: dict[tuple[str, str, str], list[Evaluation]] = {}
    for line in run.evaluations:
        lines.setdefault(line.protocol, []).append(line)
    tables = []
    for protocol, judged in lines.items():
        columns = list(dict.fromkeys(name for line in judged for name in line.values))
        shown = [judged[place] for place in evenly_spaced(len(judged), _MOST_ROWS)]
        rows = []
        for line in shown:
            cells = [formatting.percent(line.values.get(name)) for name in columns]
            rows.append((f"{line.draw:,}", line.checkpoint, cells))
        left_out = f"; {len(judged) - len(shown)} more in metrics.jsonl" if len(judged) > len(shown) else ""
        names = [name.replace("_", " ") for name in columns]
        tables.append(EvaluationTable(protocol[0], describe(protocol) + left_out, names, rows))
    return tables
