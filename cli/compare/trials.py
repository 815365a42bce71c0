"""The runs that a comparison is made of: their folders, settings and commands, and which of them are done."""

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
    """A run of one arm with one seed, or its pilot (seed None)."""

    arm: str
    seed: int | None
    folder: Path
    recipe: str
    values: Settings  # all that differs from the recipe

    @property
    def log(self) -> Path:
        """Where its processes print to."""
        return self.folder.with_name(self.folder.name + ".log")

    @property
    def arguments(self) -> list[str]:
        """Those of mimcl that start the run, or go on with it."""
        words = ["train", "--recipe", self.recipe]
        for key, value in self.values.items():
            words += [_FLAGS[key], _text(value)] if key in _FLAGS else ["--set", f"{key}={_text(value)}"]
        return [*words, "--out", str(self.folder), "--resume"]

    def is_done(self, samples: int) -> bool:
        """Whether nothing is left to train. Raises ConfigError when the run in the folder has other settings."""
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
    labelled: LabelledSplits | None  # what the runs are judged on
    processes: int  # of each command

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
        """Finds out, before anything runs, what would not: settings, data, prototypes, and `labels` to judge by."""
        for key in settings:
            if owners := [name for name, its in arms.items() if key in its]:
                raise ConfigError(f"--set {key}: arm {owners[0]} says what it is; leave one of them out")
        base = override(recipe(recipe_name), settings)
        index = ShardIndex.load(base.data.root)
        for its in arms.values():
            load_distances(override(base, its), index)
        labelled = LabelledSplits.load(index.location) if labels else None
        return cls(base, settings, arms, index, out or Path("comparisons") / base.recipe, labelled, processes)

    def runs(self, seeds: int, epochs: Mapping[str, float | str]) -> list[Trial]:
        """Seed by seed, so that what is there after a while compares fairly."""
        return [self._trial(arm, seed, {"trainer.epochs": epochs[arm]}) for seed in range(seeds) for arm in self.arms]

    def pilots(self, arms: Sequence[str]) -> list[Trial]:
        """Short runs that measure the time of a step; the first twice, as it may find the disk cold."""
        short = pilot_settings(self.base.data.batch_size, self.index.samples)
        return [self._trial(arm, None, short) for arm in [*arms[:1], *arms]]

    def command(self, arguments: Sequence[str]) -> list[str]:
        """What runs mimcl with these, training or judging, in as many processes as it should."""
        return command(*arguments, processes=self.processes)

    def start(self, arguments: Sequence[str], run: Trial, signals: StopSignals) -> None:
        """Runs a command about `run` to its end, as children.run_to_end; ChildError says which run it was."""
        try:
            run_to_end(self.command(arguments), run.log, signals)
        except ChildError as error:
            raise ChildError(f"{run.folder.name}: {error}") from None

    def _trial(self, arm: str, seed: int | None, more: Settings) -> Trial:
        folder = self.out / ("pilot" if seed is None else ".") / (arm if seed is None else f"{arm}-seed{seed}")
        own = {"data.root": self.base.data.root, "seed": seed or 0, **self.arms[arm], **more}
        return Trial(arm, seed, folder, self.base.recipe, {"report": False, **self.settings, **own})


def _text(value: Any) -> str:
    """As it is typed: plain where YAML reads it back as the same."""
    return str(value) if isinstance(value, str) and yaml.safe_load(value) == value else json.dumps(value)
