"""Names of a comparison's arms, DATA[+MASKING][+SCHEDULE][+RESAMPLING][+balance][+efficient][+cross], and settings."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_type_hints

from mimcl.cli.errors import ConfigError
from mimcl.curriculum.config import CurriculumConfig
from mimcl.curriculum.masking.masking_config import MaskingConfig
from mimcl.curriculum.resolution import EFFICIENT

Settings = Mapping[str, Any]  # by dotted keys of the configuration

DATA: dict[str, Settings] = {
    "uniform": {"curriculum.name": "none", "curriculum.uniform": "replacement"},
    "epochs": {"curriculum.name": "none", "curriculum.uniform": "epochs"},
    "proto": {"curriculum.name": "proto"},
    "anti": {"curriculum.name": "anti"},
    "subset": {"curriculum.name": "subset"},
}
_CURRICULUM, _MASKING = get_type_hints(CurriculumConfig), get_type_hints(MaskingConfig)
# "learned" is ambiguous: there is a learned masking and a learned schedule.
_SCHEDULES = {name: {"curriculum.temp_schedule": name} for name in get_args(_CURRICULUM["temp_schedule"])}
_SCHEDULES["learned-temperature"] = _SCHEDULES.pop("learned")
_MASKINGS = {name: {"masking.name": MaskingConfig(name).name} for name in get_args(_MASKING["name"])}
_MASKINGS["learned-masks"] = _MASKINGS.pop("learned")
_RESAMPLINGS = {name: {"curriculum.resampling": name} for name in get_args(_CURRICULUM["resampling"])}
# Words that stand for themselves, with what they set.
_OTHERS: dict[str, Settings] = {
    "balance": {"curriculum.balance": True},
    EFFICIENT: {"curriculum.resolution": EFFICIENT},
    "cross": {"model.decoder": "cross", "model.predict_share": 0.25},
}
WORDS: dict[str, Settings] = {**_MASKINGS, **_SCHEDULES, **_RESAMPLINGS, **_OTHERS}  # after a +
_USERS = {  # data curricula that a key has an effect on, where it is not all
    "curriculum.temp_schedule": ("proto", "anti", "subset"),
    "curriculum.balance": ("proto", "anti"),
    "curriculum.resampling": ("uniform", "proto", "anti", "subset"),
}


def arms(text: str) -> dict[str, Settings]:
    """Parse a comma-separated list such as "uniform,proto,proto+hpm" into the settings of each arm, in order.

    Raises ConfigError for unknown or conflicting words, and for two arms with the same settings.
    """
    found: dict[str, Settings] = {}
    for name in (part.strip() for part in text.split(",")):
        settings = arm(name)
        for other, other_settings in found.items():
            if other_settings == settings:
                raise ConfigError(f"arms {other} and {name} are the same; remove one")
        found[name] = settings
    return found


def arm(name: str) -> Settings:
    """Parse the name of one arm into its settings."""
    first, *rest = name.split("+")
    if first not in DATA:
        raise ConfigError(f"arm {name!r} must start with a data curriculum: {_suggest(first, list(DATA))}")
    settings = dict(DATA[first])
    for word in rest:
        if word == "learned":
            raise ConfigError(
                f"arm {name!r}: 'learned' is ambiguous; use learned-masks (CL-MAE) or learned-temperature"
            )
        if word not in DATA | WORDS:
            raise ConfigError(f"arm {name!r} has an unknown word: {_suggest(word, list(WORDS))}")
        if word in DATA or settings.keys() & WORDS[word].keys():
            raise ConfigError(f"arm {name!r}: {word!r} conflicts with an earlier word; remove one")
        users = _USERS.get(next(iter(WORDS[word])), DATA)
        if first not in users:
            raise ConfigError(f"arm {name!r}: {word} has no effect with {first}; remove it")
        settings |= WORDS[word]
    return settings


def _suggest(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"{word!r}; did you mean {near[0]}?" if near else f"{word!r}; choose one of {', '.join(known)}"
