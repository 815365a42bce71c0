"""The runs of a comparison: their folders, settings and commands, and which of them are done."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mimcl.cli import suggest
from mimcl.cli.auto_recipe import AutoRecipe, auto_recipe
from mimcl.cli.compare.arms import Settings
from mimcl.cli.compare.children import ChildError, command, run_to_end
from mimcl.cli.compare.compare_config import CompareConfig
from mimcl.cli.compare.pilot import pilot_settings
from mimcl.cli.config import Config, override
from mimcl.cli.errors import ConfigError
from mimcl.cli.evaluate.labelled import LabelledSplits
from mimcl.cli.options import flags
from mimcl.cli.recipes import recipe
from mimcl.cli.run.batch_advice import smaller_batch, too_large
from mimcl.cli.run.folder import free_folder, open_run
from mimcl.cli.run.resolve import draws_of
from mimcl.cli.run.signals import StopSignals
from mimcl.cli.run.training_data import load_difficulty
from mimcl.model import checkpoint
from mimcl.pipeline.index import ShardIndex

_PARAMETERS = (  # of `mimcl compare`
    *("data", "prototypes", "epochs", "image_size", "mask_ratio", "batch_size", "base_lr", "online_knn", "online_rank"),
)
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
    chosen: AutoRecipe | None = None  # by --recipe auto

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
        index = ShardIndex.load(override(Config(), settings).data.root)
        chosen = None
        if recipe_name == "auto":
            chosen = chosen_before(out, settings) or auto_recipe(settings, processes, arms.values(), index)
            recipe_name, settings = chosen.name, {**chosen.values, **settings}
        base = override(recipe(recipe_name), settings)
        for arm_settings in arms.values():
            load_difficulty(override(base, arm_settings).curriculum, index, base.seed)
        labelled = LabelledSplits.load(index.location) if labels else None
        out = out or Path("comparisons") / base.recipe
        return cls(base, settings, arms, index, out, labelled, processes, chosen)

    def notes(self, config: CompareConfig) -> Iterator[str]:
        """Yield lines about what --recipe auto chose, and about a batch that is too large for the data."""
        if self.chosen:
            yield self.chosen.line
        groups = [override(self.base, arm_settings).group_size for arm_settings in self.arms.values()]
        smaller = smaller_batch(self.base, self.index.samples, max(groups), self.processes)
        if smaller:
            options = flags({**self.settings, **smaller}, _PARAMETERS)
            words = suggest.command(
                "compare",
                recipe=self.base.recipe,
                arms=",".join(self.arms),
                seeds=config.seeds,
                budget=None if config.budget == "samples" else config.budget,
                processes=None if self.processes == 1 else self.processes,
                eval=None if list(config.evaluations) == ["knn"] else ",".join(config.evaluations),
                **options,
                out=free_folder(self.out),
            )
            yield f"{too_large(self.base, self.index.samples)}; one that fits: {words}"

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


def chosen_before(out: Path | None, settings: Settings) -> AutoRecipe | None:
    """Return what --recipe auto chose when the comparison in `out` was started; None if there is none."""
    try:
        head = json.loads((out / "comparison.json").read_bytes()) if out else {}
        name, values = head["recipe"], dict(head["chosen_by_auto"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # a file that cannot be read is refused later
    return AutoRecipe(
        name,
        {key: value for key, value in values.items() if key not in settings},
        f"recipe auto: {name}, as when {out} was started",
    )


def _text(value: Any) -> str:
    """Format a value for the command line: plain if YAML reads the same value back, else JSON."""
    return str(value) if isinstance(value, str) and yaml.safe_load(value) == value else json.dumps(value)
