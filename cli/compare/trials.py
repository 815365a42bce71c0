"""The runs of a comparison: their folders, settings and commands, and which of them are done."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mimcl.cli.compare.arms import Settings
from mimcl.cli.compare.children import ChildError, command, run_to_end
from mimcl.cli.compare.pilot import pilot_settings
from mimcl.cli.config import Config, override
from mimcl.cli.errors import ConfigError
from mimcl.cli.evaluate.labelled import LabelledSplits
from mimcl.cli.recipes import recipe
from mimcl.cli.run.folder import open_run
from mimcl.cli.run.resolve import draws_of
from mimcl.cli.run.signals import StopSignals
from mimcl.cli.run.training_data import load_distances
from mimcl.model import checkpoint
from mimcl.pipeline.index import ShardIndex

_FLAGS = {"data.root": "--data", "trainer.epochs": "--epochs", "seed": "--seed"}


@dataclass(frozen=True)
class Trial:
    """A run of one arm with one seed, or an arm's pilot run."""

    arm: str
    seed: int
    folder: Path
    recipe: str
    values: Settings  # everything that differs from the recipe

    @property
    def log(self) -> Path:
        """The file that its processes print to."""
        return self.folder.with_name(self.folder.name + ".log")

    @property
    def arguments(self) -> list[str]:
        """The arguments of `mimcl` that start or resume the run."""
        words = ["train", "--recipe", self.recipe]
        for key, value in self.values.items():
            words += [_FLAGS[key], _text(value)] if key in _FLAGS else ["--set", f"{key}={_text(value)}"]
        return [*words, "--out", str(self.folder), "--resume"]

    def is_done(self, samples: int) -> bool:
        """Whether training is complete. Raises ConfigError if the run in the folder has other settings."""
        run = open_run(self.recipe, self.values, self.folder, resume=True)
        if not run.resumed:
            return False
        meta = checkpoint.newest(run.checkpoints, checkpoint.read_meta, lambda line: None)
        return meta["position"] == draws_of(run.config, samples)


@dataclass(frozen=True)
class Trials:
    """What all runs have in common."""

    base: Config
    settings: Settings
    arms: Mapping[str, Settings]
    index: ShardIndex
    out: Path
    labelled: LabelledSplits | None  # the images that runs are evaluated on
    processes: int  # per command

    @classmethod
    def prepare(
        cls,
        recipe_name: str,
        arms: Mapping[str, Settings],
        settings: Settings,
        out: Path | None,
        labels: bool,
        processes: int,
    ) -> Trials:
        """Check settings, data, prototypes and, if `labels` are needed, labelled images before anything runs."""
        for key in settings:
            if owners := [name for name, arm_settings in arms.items() if key in arm_settings]:
                raise ConfigError(f"--set {key}: arm {owners[0]} sets it already; remove one of them")
        base = override(recipe(recipe_name), settings)
        index = ShardIndex.load(base.data.root)
        for arm_settings in arms.values():
            load_distances(override(base, arm_settings), index)
        labelled = LabelledSplits.load(index.location) if labels else None
        return cls(base, settings, arms, index, out or Path("comparisons") / base.recipe, labelled, processes)

    def runs(self, seeds: int, epochs: Mapping[str, float | str]) -> list[Trial]:
        """Return all runs, seed by seed, so that a partial comparison is fair."""
        return [
            self._trial(arm, seed, self.out / f"{arm}-seed{seed}", {"trainer.epochs": epochs[arm]})
            for seed in range(seeds)
            for arm in self.arms
        ]

    def draws(self, run: Trial) -> int:
        """Return the length of a run in draws."""
        return draws_of(override(self.base, run.values), self.index.samples)

    def pilots(self, arms: Sequence[str]) -> list[Trial]:
        """Return short runs that measure the time per step; the first arm's twice, to warm up the page cache."""
        short = pilot_settings(self.base.data.batch_size, self.index.samples)
        return [self._trial(arm, 0, self.out / "pilot" / arm, short) for arm in [*arms[:1], *arms]]

    def command(self, arguments: Sequence[str]) -> list[str]:
        """Return the command line that runs `mimcl` with these arguments, in `processes` processes."""
        return command(*arguments, processes=self.processes)

    def start(self, arguments: Sequence[str], run: Trial, signals: StopSignals) -> None:
        """Run a command for `run` with `run_to_end`; a ChildError names the run."""
        try:
            run_to_end(self.command(arguments), run.log, signals)
        except ChildError as error:
            raise ChildError(f"{run.folder.name}: {error}") from None

    def _trial(self, arm: str, seed: int, folder: Path, more: Settings) -> Trial:
        own = {"data.root": self.base.data.root, "seed": seed, **self.arms[arm], **more}
        return Trial(arm, seed, folder, self.base.recipe, {"report": False, **self.settings, **own})


def _text(value: Any) -> str:
    """Format a value for the command line: plain if YAML reads the same value back, else JSON."""
    return str(value) if isinstance(value, str) and yaml.safe_load(value) == value else json.dumps(value)
