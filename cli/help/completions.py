"""What the shell completes for options whose values are not a closed list. Everything imported here is light."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from mimcl.cli.keys.key_list import Key

Item = tuple[str, str]  # value, help


def settings(incomplete: str) -> list[Item]:
    """Complete KEY=VALUE for --set of `mimcl train`."""
    from mimcl.cli.keys.key_list import train_keys

    return _settings(train_keys(), incomplete)


def finetune_settings(incomplete: str) -> list[Item]:
    """Complete KEY=VALUE for --set of `mimcl eval finetune`."""
    from mimcl.cli.keys.key_list import finetune_keys

    return _settings(finetune_keys(), incomplete)


def key_names(incomplete: str) -> list[Item]:
    """Complete a key of either configuration."""
    from mimcl.cli.keys.key_list import finetune_keys, train_keys

    return [(key.key, key.help) for key in [*train_keys(), *finetune_keys()]]


def changeable(incomplete: str) -> list[Item]:
    """Complete what --allow-change takes."""
    from mimcl.cli.keys.key_list import train_keys

    others = [("index", "The packed images."), ("prototypes", "The prototype set.")]
    return others + [(key.key, key.help) for key in train_keys()]


def prototype_sets(context: typer.Context, incomplete: str) -> list[str]:
    """Complete the names of the sets beside the shards in --data."""
    folder = Path(str(context.params.get("data") or "shards")) / "prototypes"
    return sorted(file.parent.name for file in folder.glob("*/prototypes.json"))


def resolutions(incomplete: str) -> list[Item]:
    """Complete the named resolution schedule."""
    return [("efficient", "Small crops first, as EfficientTrain++.")]


def features(incomplete: str) -> list[Item]:
    """Complete the kinds of features."""
    return [
        ("auto", "DINO if the hub answers within 10 s, else sift."),
        ("sift", "Bags of local gradients; needs no download."),
        ("pixels", "Small grey images."),
        ("timm:", "timm:MODEL, or timm:MODEL@FILE."),
        ("mae:", "mae:RUN, or a checkpoint of one."),
    ]


def difficulties(incomplete: str) -> list[Item]:
    """Complete the kinds of difficulty."""
    return [("distance", "To the prototype."), ("loss:", "loss:RUN, or a checkpoint of one.")]


def arms(incomplete: str) -> list[str]:
    """Complete the last word of DATA[+MASKING][+SCHEDULE][+RESAMPLING][+balance],... ."""
    from mimcl.cli.compare.arms import DATA, WORDS

    done = incomplete[: max(incomplete.rfind(","), incomplete.rfind("+")) + 1]
    return [done + word for word in (WORDS if done.endswith("+") else DATA)]


def evaluations(incomplete: str) -> list[str]:
    """Complete the last name of a list with commas."""
    from mimcl.cli.evaluate.eval_options import EVALUATIONS

    done = incomplete[: incomplete.rfind(",") + 1]
    return [done + name for name in EVALUATIONS if name not in done.split(",")]


def _settings(keys: list[Key], incomplete: str) -> list[Item]:
    """Complete KEY=; once a single key is left, also with its choices or its default, so that no space is added."""
    from mimcl.cli.keys.key_list import shown

    near = [key for key in keys if f"{key.key}=".startswith(incomplete) or incomplete.startswith(f"{key.key}=")]
    items = [(f"{key.key}=", key.help) for key in near]
    if len(near) == 1:
        items += [(f"{near[0].key}={value}", "") for value in near[0].choices or [shown(near[0].default)]]
    return items
