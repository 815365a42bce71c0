"""Check a comparison before anything runs, against what its folder has already."""

from __future__ import annotations

import json
from typing import Any

from mimcl.cli.compare.compare_config import CompareConfig
from mimcl.cli.compare.evaluations import current_protocols
from mimcl.cli.compare.trials import Trials
from mimcl.cli.config import flatten
from mimcl.cli.errors import ConfigError
from mimcl.cli.evaluate.eval_options import LABEL_FREE
from mimcl.pipeline.files import list_folder, remedy

_FORMAT = "mimcl-comparison/1"
# What a run may change when it is resumed, but what its figures here depend on.
_OF_THE_FIGURES = ("trainer.log_every_steps", "trainer.online_knn_epochs", "trainer.online_rank_epochs")


def prepare(config: CompareConfig) -> tuple[Trials, dict[str, Any]]:
    """Return the runs and the head of comparison.json. Raises ConfigError if OUT has something else."""
    labels = any(name not in LABEL_FREE for name in config.evaluations)
    trials = Trials.prepare(config.recipe, config.arms, config.settings, config.out, labels, config.processes)
    head = {
        "format": _FORMAT,
        "recipe": trials.base.recipe,
        "budget": config.budget,
        "epochs": trials.base.trainer.epochs,
        "chosen_by_auto": trials.chosen.values if trials.chosen else {},
        "seconds_per_step": {},
        "protocols": {},  # evaluation name: settings and index of its lines
        **{key: flatten(trials.base)[key] for key in _OF_THE_FIGURES},
    }
    out = trials.out
    if out.exists() and (not out.is_dir() or list_folder(out)):
        try:
            optional = {"protocols": {}, "chosen_by_auto": {}} | {
                key: head[key] for key in _OF_THE_FIGURES
            }  # not in older files
            known = optional | json.loads((out / "comparison.json").read_bytes())
            known = {key: known[key] for key in head}
            known["seconds_per_step"] = {arm: float(seconds) for arm, seconds in known["seconds_per_step"].items()}
            known["protocols"] = current_protocols(known["protocols"], trials.labelled, trials.index)
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
            raise ConfigError(f"{out} exists and is not a comparison; give another --out") from None
        except OSError as error:
            advice = remedy(error, "give another --out")
            raise ConfigError(f"{out}/comparison.json cannot be read ({error.strerror}); {advice}") from None
        for key in ("format", "recipe", "budget", "epochs", *_OF_THE_FIGURES):
            if known[key] != head[key]:
                raise ConfigError(
                    f"{key} is {head[key]!r} but the comparison in {out} has {known[key]!r}; give another --out"
                )
        head = known
    return trials, head
