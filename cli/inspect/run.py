"""Describe a run, which may still be training, from the files it has written so far."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mimcl.cli.config import Config, flatten, nested_keys, override, read_yaml
from mimcl.cli.console import first_few, format_bytes
from mimcl.cli.evaluate.results_file import format_results, latest_results
from mimcl.cli.inspect.checkpoint import bytes_in_folder
from mimcl.cli.run.config_diff import config_diff
from mimcl.cli.run.resolve import draws_of
from mimcl.cli.suggest import command
from mimcl.model import checkpoint
from mimcl.model.checkpoint import CheckpointError
from mimcl.model.jsonl import read_lines
from mimcl.pipeline.dataset_json import read_dataset
from mimcl.pipeline.draw_counts import DrawCounts
from mimcl.pipeline.files import DataError, remedy
from mimcl.pipeline.remote.urls import shown, url_of


@dataclass(frozen=True)
class SavedStep:
    """A checkpoint on disk; `fault` says why its metadata cannot be read. Its weights are not read."""

    step: int
    bytes: int
    fault: str | None


@dataclass(frozen=True)
class RunDescription:
    """The configuration, progress and results of a run; None stands for unknown, or not yet."""

    path: Path
    recipe: str
    differs: dict[str, tuple[Any, Any]]  # key: (the recipe's value, the run's value)
    chosen: dict[str, Any]  # by --recipe auto
    model: str
    precision: str
    masking: str
    curriculum: str
    data: str
    data_fits: bool | None  # None: the shards are missing or remote
    images: int | None
    epochs: float
    batch_size: int
    steps: int | None
    step: int  # last logged
    epoch: float | None
    finished: bool
    checkpoints: list[SavedStep]
    last: dict[str, Any]  # the last line of metrics.jsonl with a loss
    coverage: float | None
    max_repeats: int | None
    bad_samples: int
    nonfinite_steps: int
    evaluations: list[Mapping[str, Any]]  # lines of metrics.jsonl; the last of those that differ only in values
    bytes: int
    checkpoint_bytes: int
    fingerprints: dict[str, str | None]
    window: int | None
    digest: str | None  # of the last window's sample ids

    def lines(self) -> list[tuple[str, str]]:
        steps = f"{self.step:,}" + (f" of {self.steps:,} steps" if self.steps else " steps")
        epochs = "" if self.epoch is None else f", {self.epoch:,.1f} of {self.epochs:,g} epochs"
        state = "finished" if self.finished else "not finished"
        unknown = "remote, not compared" if url_of(self.data) else "not found"
        known = {True: "the same as in training", False: "not the data of this run", None: unknown}
        lines = [
            ("run", str(self.path)),
            ("recipe", f"{self.recipe}: {self.model}, {self.precision}, masking {self.masking}"),
            *(("  by auto", f"{key}: {value}") for key, value in self.chosen.items()),
            *(("  changed", f"{key}: {now} instead of {before}") for key, (before, now) in self.differs.items()),
            ("curriculum", self.curriculum),
            ("data", f"{self.data} ({known[self.data_fits]})" + (f", {self.images:,} images" if self.images else "")),
            ("progress", f"{steps}{epochs}; {state}"),
            ("checkpoints", self._checkpoints()),
        ]
        if self.last:
            lines.append(("last metrics", self._metrics()))
        if self.coverage is not None:
            lines.append(("drawn so far", f"{self.coverage:.1%} of images, each at most {self.max_repeats:,} times"))
        lines.append(("problems", f"{self.bad_samples:,} bad samples, {self.nonfinite_steps:,} non-finite steps"))
        lines += [("evaluation", text) for text in self._evaluations()]
        lines.append(
            ("on disk", f"{format_bytes(self.bytes)}, {format_bytes(self.checkpoint_bytes)} of it checkpoints")
        )
        lines += [(f"{name} fingerprint", text or "none") for name, text in self.fingerprints.items()]
        if self.digest:
            lines.append(("last window", f"{self.window:,}, digest {self.digest}"))
        return lines

    def _checkpoints(self) -> str:
        if not self.checkpoints:
            return "none"
        text = f"{len(self.checkpoints)}, at steps {first_few(f'{saved.step:,}' for saved in self.checkpoints)}"
        faults = [saved.fault for saved in self.checkpoints if saved.fault]
        return text + "".join(f"; {fault}" for fault in faults)

    def _evaluations(self) -> Iterator[str]:
        """Yield a line for each evaluation of a checkpoint; of those made while training, for the last of each name."""
        training: dict[str, list[Mapping[str, Any]]] = {}
        for line in self.evaluations:
            if "checkpoint" in line:
                yield f"{line['evaluation']} at checkpoint {line['checkpoint']}: {format_results(line['values'])}"
            else:
                training.setdefault(line["evaluation"], []).append(line)
        for name, lines in training.items():
            more = f"; {len(lines) - 1:,} earlier in metrics.jsonl" if len(lines) > 1 else ""
            step = lines[-1]["draw"] // self.batch_size
            yield f"{name} at step {step:,}: {format_results(lines[-1]['values'])}{more}"

    def _metrics(self) -> str:
        temperature, fraction = self.last.get("temperature"), self.last.get("effective_fraction")
        loss = self.last.get("loss")
        parts = ["loss not finite" if loss is None else f"loss {loss:.4f}"]
        parts.append("uniform draws" if temperature is None else f"tau {temperature:.3g}, r {fraction:.3f}")
        if "images_per_second" in self.last:
            parts.append(f"{self.last['images_per_second']:,.0f} img/s, data-wait {self.last['data_wait']:.0%}")
        return ", ".join(parts)


def describe_run(path: Path) -> RunDescription:
    """Read a run's folder. Raises ConfigError, CheckpointError or DataError for damaged or incompatible files."""
    saved, metas = _read_checkpoints(path / "checkpoints")
    newest = metas[-1] if metas else {}
    values = nested_keys(newest["config"]) if newest else read_yaml(path / "config.yaml")
    config = override(Config(), values)
    try:
        lines = read_lines(path / "metrics.jsonl")
        bad = len(read_lines(path / "quarantine.jsonl"))
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}") from None
    counts = _counts(path / "draw_counts.npy")
    train = _train_split(config.data.root)
    fingerprints = newest.get("fingerprints", {})
    fits = None if train is None or not fingerprints else train["fingerprint"] == fingerprints["index"]
    images = None if counts is None else len(counts)
    if images is None and train is not None:
        images = train["samples"]
    stepped = [line for line in lines if "step" in line and "loss" in line]
    windows = [line for line in lines if "window" in line]
    step = max([stepped[-1]["step"] if stepped else 0, *(meta["step"] for meta in metas)])
    steps = draws_of(config, images) // config.data.batch_size if images else None
    drawn = None if counts is None else DrawCounts(counts)
    return RunDescription(
        path=path,
        recipe=config.recipe,
        differs=config_diff(config, images),
        chosen={key: value for key, value in flatten(config).items() if key in config.auto_keys},
        model=f"{config.model.name}/{config.model.patch_size} at {config.data.image_size} px",
        precision=config.trainer.precision,
        masking=f"{config.masking.name} {config.masking.mask_ratio:g}",
        curriculum=_curriculum(config),
        data=shown(config.data.root),
        data_fits=fits,
        images=images,
        epochs=config.trainer.epochs,
        batch_size=config.data.batch_size,
        steps=steps,
        step=step,
        epoch=step * config.data.batch_size / images if images else None,
        finished=steps is not None and any(kept.step == steps and not kept.fault for kept in saved),
        checkpoints=saved,
        last=stepped[-1] if stepped else {},
        coverage=drawn.coverage if drawn else None,
        max_repeats=drawn.max_repeats if drawn else None,
        bad_samples=bad,
        nonfinite_steps=sum(line.get("nonfinite_steps") or 0 for line in stepped),
        evaluations=latest_results(lines),
        bytes=bytes_in_folder(path),
        checkpoint_bytes=sum(kept.bytes for kept in saved),
        fingerprints=fingerprints,
        window=windows[-1]["window"] if windows else None,
        digest=windows[-1].get("digest") if windows else None,
    )


def _read_checkpoints(folder: Path) -> tuple[list[SavedStep], list[dict[str, Any]]]:
    """Return all checkpoints, oldest first, and the metadata of those that can be read."""
    kept, metas = [], []
    for path in sorted(checkpoint.candidates(folder)):
        fault = None
        try:
            metas.append(checkpoint.read_meta(path))
        except CheckpointError as error:
            fault = str(error)
        kept.append(SavedStep(int(path.name), bytes_in_folder(path), fault))
    return kept, metas


def _curriculum(config: Config) -> str:
    chosen = config.curriculum
    growing = f", resolution {chosen.resolution}" if chosen.resolution else ""
    if chosen.name == "none":
        return f"none{growing}"
    start = f"at temperature {chosen.temperature:g}" if chosen.temp_schedule == "constant" else f"from r0 {chosen.r0:g}"
    order = " in the order of the shards" if chosen.order == "shard" else ""
    balanced = ", balanced" if chosen.balance else ""
    prototypes = f", prototypes {chosen.prototypes}" if chosen.has_prototypes else ""
    return (
        f"{chosen.name}, {chosen.temp_schedule} {start}, {chosen.resampling}{balanced}, for {chosen.share:g} of the "
        f"run{prototypes}, windows of {chosen.window or 0:,} draws{order}{growing}"
    )


def _train_split(root: str) -> dict[str, Any] | None:
    """Return the entry of the train split; None for shards that are missing or remote (which would be slow)."""
    try:
        return None if url_of(root) else read_dataset(root)["splits"].get("train")
    except DataError:
        return None


def _counts(path: Path) -> NDArray[np.uint32] | None:
    if not path.exists():
        return None
    try:
        counts = np.load(path, allow_pickle=False)
        if counts.dtype != np.uint32 or counts.ndim != 1 or not len(counts):
            raise ValueError("not draw counts")
    except (OSError, ValueError, EOFError) as error:
        advice = f"`{command('train', out=path.parent, resume=True)}` writes it again"
        advice = remedy(error, advice) if isinstance(error, OSError) else advice
        raise DataError(f"{path} cannot be read ({error}); {advice}") from None
    return counts
