"""A run's folder and configuration: of a new run, or of one that is resumed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import Any

import xxhash

from mimcl.cli.auto_recipe import auto_recipe
from mimcl.cli.config import Config, flatten, nested_keys, override, read_yaml
from mimcl.cli.console import busy
from mimcl.cli.errors import ConfigError
from mimcl.cli.recipes import recipe
from mimcl.cli.run.resumed_config import FREE, resumed_config
from mimcl.cli.suggest import command
from mimcl.model import checkpoint
from mimcl.model.world import World
from mimcl.pipeline.files import list_folder, remedy
from mimcl.pipeline.folder_lock import FolderLock

# Of what may change on a resume, the values that all ranks must share, since they decide when ranks communicate.
_ALIKE = {
    "data.max_bad",
    "trainer.log_every_steps",
    "trainer.checkpoint_every_steps",
    "trainer.max_nonfinite",
    "trainer.online_knn_epochs",
    "trainer.online_rank_epochs",
}
_LOCK_TIMEOUT_S = 60.0  # twice the time in which a process notices that another machine is gone
DATA = ("index", "prototypes")  # fingerprints, which --allow-change accepts too


@dataclass(frozen=True)
class Run:
    """A run: its folder and configuration, whether it is resumed, and which changes are allowed then."""

    folder: Path
    config: Config
    resumed: bool
    allowed: frozenset[str] = frozenset()
    reported: tuple[str, ...] = ()  # warnings about damaged checkpoints that were printed already

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"


def open_run(
    recipe_name: str | None = None,
    values: Mapping[str, Any] = MappingProxyType({}),
    out: Path | None = None,
    resume: bool = False,
    allowed: Collection[str] = (),
    warn: Callable[[str], None] = lambda line: None,
    inform: Callable[[str], None] = lambda line: None,
) -> Run:
    """Decide on folder and configuration; write nothing.

    `values` has dotted keys, for example {"curriculum.name": "proto"}; `recipe_name` None is "auto".
    `inform` gets a line about what auto chose.

    Start-up priority: (1) with `resume`, the newest complete checkpoint in `out` and the configuration that it was
    saved with, in which `values` may change only `allowed` fields; (2) with `resume`, the config.yaml of a run that was
    killed before its first checkpoint, under the same rule; (3) a new run in `out`; (4) a new run in
    runs/RECIPE-CURRICULUM-MASKING, then -2, -3.
    """
    if unknown := set(allowed) - (flatten(Config()).keys() - {"recipe"}) - set(DATA):
        raise ConfigError(f"--allow-change {min(unknown)}: unknown field; give section.key, {' or '.join(DATA)}")
    if out and out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; give a folder with --out")
    if resume and out is None:
        raise ConfigError(f"--resume needs the run: {command('train', out='runs/NAME', resume=True)}")
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) and not resume:
        raise ConfigError("torchrun started this run again; start it with --out runs/NAME --resume")
    if resume and out:
        if checkpoint.candidates(out / "checkpoints") or (out / "checkpoints" / "latest").exists():
            reported: list[str] = []
            try:
                meta = checkpoint.newest(out / "checkpoints", checkpoint.read_meta, reported.append)
            finally:
                for line in reported:
                    warn(line)
            saved = override(Config(), nested_keys(meta["config"]))
            config = resumed_config(saved, out, recipe_name, values, allowed, meta.get("samples"), warn)
            return Run(out, config, True, frozenset(allowed), tuple(reported))
        if (out / "config.yaml").exists():
            saved = override(Config(), read_yaml(out / "config.yaml"))
            return Run(out, resumed_config(saved, out, recipe_name, values, allowed, None, warn), False)
    if out and out.exists() and list_folder(out) and not resume:
        raise ConfigError(f"{out} exists; give another --out, or --resume to continue it")
    config = new_config(recipe_name, values, inform)
    new = Path("runs") / f"{config.recipe}-{config.curriculum.name}-{config.masking.name}"
    return Run(out or free_folder(new), config, False)


def new_config(
    recipe_name: str | None, values: Mapping[str, Any], inform: Callable[[str], None] = lambda line: None
) -> Config:
    """Return a new run's configuration: a recipe (`recipe_name`, else that of `values`, else auto) with `values`.

    What auto chooses depends on the data and the machine; `inform` gets a line about it.
    """
    values = dict(values)
    name = recipe_name or values.get("recipe") or "auto"
    values.pop("recipe", None)
    if name != "auto":
        return override(recipe(name), values)
    world = World.from_environment()
    with busy("choosing a recipe", shown=world.rank == 0):
        chosen = auto_recipe(values, world.size)
    inform(chosen.line)
    return chosen.config(values)


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Create the run folder, and lock it against other processes while the block lasts. Raises ConfigError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(folder)
    except OSError as error:
        advice = remedy(error, "give another --out")
        raise ConfigError(f"cannot create the run folder {folder}: {error.strerror}; {advice}") from None
    # After a restart by torchrun the former process may be on a machine that has not yet noticed that it is cut off.
    timeout_s = _LOCK_TIMEOUT_S if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) else 0
    with lock:
        if not lock.acquire(timeout_s):
            raise ConfigError(f"{folder} is in use by another process; wait for it, or give another --out")
        yield


def agree_on(config: Config, fingerprints: dict[str, str | None], resumed: bool) -> None:
    """Raise DistributedError unless all ranks train the same model on the same data, from the same point on."""
    from mimcl.model.distributed import agree

    fixed = {key: value for key, value in flatten(config).items() if key not in FREE - _ALIKE}
    agree("the configuration", xxhash.xxh64_hexdigest(json.dumps(fixed).encode()))
    agree("the data", xxhash.xxh64_hexdigest(json.dumps(fingerprints).encode()))
    # A shared folder may show a checkpoint to one machine before the other.
    agree("whether there is a checkpoint to resume from", f"{resumed:d}")


def free_folder(folder: Path) -> Path:
    """Return `folder`, or if it exists the first of FOLDER-2, FOLDER-3 and so on that does not."""
    candidates = (folder if number == 1 else folder.with_name(f"{folder.name}-{number}") for number in count(1))
    return next(candidate for candidate in candidates if not candidate.exists())
