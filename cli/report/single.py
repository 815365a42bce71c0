"""The page of one run: key figures, charts, tables, pictures, and what could not be shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from mimcl.cli.errors import ConfigError
from mimcl.cli.evaluate.results_file import SPREAD, is_share
from mimcl.cli.evenly_spaced import evenly_spaced
from mimcl.cli.report import charts, formatting
from mimcl.cli.report.balance import ClassBalance, class_balance, open_shards
from mimcl.cli.report.chart import Chart
from mimcl.cli.report.compared import describe_settings
from mimcl.cli.report.figures import Figure, key_figures
from mimcl.cli.report.pictures import Picture, Strip, gallery, reconstructions
from mimcl.cli.report.run_record import Evaluation, EvaluationKey, RunRecord
from mimcl.cli.report.settings import Setting, settings, train_command_line
from mimcl.cli.run.training_data import fingerprints
from mimcl.cli.suggest import command
from mimcl.curriculum.balance import Balance
from mimcl.curriculum.prototypes import PrototypeError, PrototypeSet
from mimcl.model.checkpoint import CheckpointError
from mimcl.pipeline.files import DataError
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.verify_cache import check_once

T = TypeVar("T")
_MAX_ROWS = 12  # of an evaluation's table
_MAX_CLASSES = 30  # that get a bar each


@dataclass(frozen=True)
class EvaluationTable:
    """The results of one evaluation: a row for each checkpoint."""

    name: str
    settings: str
    columns: list[str]
    rows: list[tuple[str, str, list[str]]]  # draws, checkpoint, values


@dataclass
class RunPage:
    """The content of single.html.j2; `missing` has a line for each part that could not be shown."""

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
        return self.balance is not None and len(self.balance.names) <= _MAX_CLASSES

    @property
    def charts(self) -> list[Chart]:
        """In the order of the page."""
        return [*self.training, *self.curriculum, *self.draws, *self.masking, *self.evaluation]


def run_page(run: RunRecord, pictures: bool = True) -> RunPage:
    """Build the page from the run's folder, and from its shards if they are still available."""
    by_section: dict[str, list[Setting]] = {}
    for setting in settings(run.config, run.images):
        by_section.setdefault(setting.section, []).append(setting)
    page = RunPage(
        title=run.name,
        subtitle=_subtitle(run),
        figures=key_figures(run),
        training=charts.training_charts(run),
        curriculum=charts.curriculum_charts(run),
        masking=charts.masking_charts(run),
        evaluation=charts.evaluation_charts(run),
        tables=_tables(run),
        settings=by_section,
        command=train_command_line(run.config),
        warnings=_warnings(run),
    )
    if not page.tables:
        knn, rank = command("eval knn", run.folder), command("eval rank", run.folder)
        page.missing.append(f"evaluations: none yet; run `{knn}`, or without labels `{rank}`")
    if run.counts is None:
        page.missing.append("how often images were drawn: no draw_counts.npy before the first checkpoint")
    else:
        page.draws.append(charts.draw_counts_chart(run.counts))
    index = _or_missing(
        page, "class balance, reconstructions and gallery", lambda: open_shards(run.config, run.fingerprints)
    )
    if index is not None:
        _add_shard_parts(page, run, index, pictures)
    return page


def _add_shard_parts(page: RunPage, run: RunRecord, index: ShardIndex, pictures: bool) -> None:
    if run.counts is not None:
        counts = run.counts
        page.balance = _or_missing(page, "class balance", lambda: class_balance(index, counts))
        if page.balance and not page.balance_has_bars:
            page.draws.append(charts.balance_chart(page.balance))
    if run.config.get("curriculum.name") in ("proto", "anti"):
        page.gallery = _or_missing(page, "prototype gallery", lambda: _gallery(run, index))
    if not pictures:
        page.missing.append(f"reconstructions: not drawn, to save time; run `{command('report', run.folder)}`")
    elif not run.checkpoints:
        page.missing.append("reconstructions: no checkpoint yet")
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
    saved = PrototypeSet.load(folder, index.fingerprint, check_once)
    balance = Balance.of(saved.cluster, saved.parents) if run.config.get("curriculum.balance") else None
    found = fingerprints(index, saved.distance, balance)
    if run.fingerprints.get("prototypes") not in (None, found["prototypes"]):
        raise DataError(f"{folder} has changed since this run was trained (it has another fingerprint)")
    text = "Each row is a cluster, from the images nearest to its prototype (left) to the farthest (right)."
    if scores := saved.info.get("scores"):
        text = f"Images by the scores {scores['name']}, from the easiest (left) to the hardest (right)."
    return gallery(folder, text)


def _subtitle(run: RunRecord) -> str:
    c = run.config
    parts = [
        f"recipe {c.get('recipe')}",
        f"{c.get('model.name')}/{c.get('model.patch_size')} at {c.get('data.image_size')} px",
        f"curriculum {c.get('curriculum.name')}",
        *([f"resolution {sides}"] if (sides := c.get("curriculum.resolution")) else []),
        f"masking {c.get('masking.name')} {c.get('masking.mask_ratio')}",
        f"batch {c.get('data.batch_size')}",
        f"seed {c.get('seed')}",
    ]
    return " · ".join(parts)


def _warnings(run: RunRecord) -> list[str]:
    found = []
    if skipped := int(np.nansum(run.steps["nonfinite_steps"])):
        found.append(f"steps skipped because the gradient was not finite: {skipped:,}; see {run.folder}/nonfinite")
    if run.bad_samples:
        found.append(f"bad samples that were replaced: {run.bad_samples:,}; see {run.folder}/quarantine.jsonl")
    if run.damaged_lines:
        found.append(f"unreadable lines of metrics.jsonl, left out: {run.damaged_lines:,}")
    return found


def _tables(run: RunRecord) -> list[EvaluationTable]:
    by_key: dict[EvaluationKey, list[Evaluation]] = {}
    for line in run.evaluations:
        by_key.setdefault(line.key, []).append(line)
    tables = []
    for key, lines in by_key.items():
        columns = list(dict.fromkeys(name for line in lines for name in line.values if not name.endswith(SPREAD)))
        shown = [lines[place] for place in evenly_spaced(len(lines), _MAX_ROWS)]
        rows = [(f"{line.draw:,}", line.checkpoint, [_cell(line, name) for name in columns]) for line in shown]
        left_out = f"; {len(lines) - len(shown)} more in metrics.jsonl" if len(lines) > len(shown) else ""
        names = [name.replace("_", " ") for name in columns]
        tables.append(EvaluationTable(key.name, describe_settings(key) + left_out, names, rows))
    return tables


def _cell(line: Evaluation, name: str) -> str:
    """For example "46.8 %", or "17.6 ± 2.8 %" where the standard deviation is known."""
    value, spread = line.values.get(name), line.values.get(name + SPREAD)
    if value is None or spread is None:
        return formatting.share_or_number(value, is_share(name))
    return formatting.plus_minus(value, spread, True)
