"""What the arms of a comparison are called: DATA[+MASKING][+SCHEDULE][+RESAMPLING], for example proto+hpm+linear."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, get_args, get_type_hints

from mimcl.cli.errors import ConfigError
from mimcl.curriculum.config import CurriculumConfig
from mimcl.curriculum.masking.masker import MaskingConfig

Settings = dict[str, Any]  # dotted keys of the configuration

_DATA: dict[str, Settings] = {
    "uniform": {"curriculum.name": "none", "curriculum.uniform": "replacement"},
    "epochs": {"curriculum.name": "none", "curriculum.uniform": "epochs"},
    "proto": {"curriculum.name": "proto"},
    "anti": {"curriculum.name": "anti"},
}
_CURRICULUM, _MASKING = get_type_hints(CurriculumConfig), get_type_hints(MaskingConfig)
# "learned" is a masking and a schedule; neither has it for itself.
_SCHEDULES = {name: {"curriculum.temp_schedule": name} for name in get_args(_CURRICULUM["temp_schedule"])}
_SCHEDULES["learned-temperature"] = _SCHEDULES.pop("learned")
_MASKINGS = {name: {"masking.name": MaskingConfig(name).name} for name in get_args(_MASKING["name"])}
_MASKINGS["learned-masks"] = _MASKINGS.pop("learned")
_RESAMPLINGS = {name: {"curriculum.resampling": name} for name in get_args(_CURRICULUM["resampling"])}
_WORDS = {**_DATA, **_MASKINGS, **_SCHEDULES, **_RESAMPLINGS}


def arms(text: str) -> dict[str, Settings]:
    """The settings of each arm in a list such as "uniform,proto,proto+hpm", in its order.

    Raises ConfigError for a word that there is not, for words that do not go together, and for an arm that is there
    already.
    """
    found: dict[str, Settings] = {}
    for name in (part.strip() for part in text.split(",")):
        settings = arm(name)
        for other, its in found.items():
            if its == settings:
                raise ConfigError(f"arms {other} and {name} are the same; leave one out")
        found[name] = settings
    return found


def arm(name: str) -> Settings:
    """The settings of one arm."""
    first, *rest = name.split("+")
    if first not in _DATA:
        raise ConfigError(f"arm {name!r} begins with no data curriculum: {_choose(first, list(_DATA))}")
    settings = dict(_DATA[first])
    for word in rest:
        if word == "learned":
            raise ConfigError(f"arm {name!r}: 'learned' is learned-masks (CL-MAE) or learned-temperature; say which")
        if word not in _WORDS:
            known = [known for known in _WORDS if known not in _DATA]
            raise ConfigError(f"arm {name!r} has an unknown word: {_choose(word, known)}")
        if word in _DATA or settings.keys() & _WORDS[word].keys():
            raise ConfigError(f"arm {name!r} has two words of the kind of {word!r}; leave one out")
        idle = first in ("uniform", "epochs") if word in _SCHEDULES else first == "epochs" and word in _RESAMPLINGS
        if idle:
            raise ConfigError(f"arm {name!r}: {word} changes nothing without a curriculum over the data; leave it out")
        settings |= _WORDS[word]
    return settings


def _choose(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"{word!r}; did you mean {near[0]}?" if near else f"{word!r}; choose one of {', '.join(known)}"
