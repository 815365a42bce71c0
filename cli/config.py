"""The configuration of a run: one tree of the owners' dataclasses, from recipe, YAML file, flags and --set."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import yaml

from mimcl.cli.errors import ConfigError, usage_errors
from mimcl.cli.suggest import command
from mimcl.curriculum.config import CurriculumConfig
from mimcl.curriculum.masking.masking_config import HardPatchesConfig, LearnedMaskingConfig, MaskingConfig
from mimcl.model.config import ModelConfig, OptimConfig, TrainerConfig
from mimcl.model.trackers import LogConfig
from mimcl.pipeline.data_config import DataConfig
from mimcl.pipeline.files import atomic_file, open_regular
from mimcl.pipeline.remote.urls import shown

if typing.TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = typing.TypeVar("T", bound="DataclassInstance")

_LONGEST = 1 << 16  # bytes of a configuration file
_DEEPEST = 4  # sections, a list
_ALL_KEYS = f"`{command('keys')}` lists all"


@dataclass(frozen=True)
class Config:
    """Everything that a run depends on."""

    recipe: Annotated[str, "Name of the recipe that the configuration started from."] = "mae_b16"
    seed: Annotated[int, "Random seed."] = 0
    init: Annotated[str | None, "Run, checkpoint or file with the initial weights; null: random ones."] = None
    chosen_by_auto: Annotated[str | None, "Keys whose values --recipe auto chose, separated by commas."] = None
    report: Annotated[bool, "Write report.html when the run ends."] = True
    data: DataConfig = field(default_factory=DataConfig)
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    hard_patches: HardPatchesConfig = field(default_factory=HardPatchesConfig)
    learned_masking: LearnedMaskingConfig = field(default_factory=LearnedMaskingConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    log: LogConfig = field(default_factory=LogConfig)

    @property
    def auto_keys(self) -> set[str]:
        """The dotted keys whose values --recipe auto chose."""
        return set(self.chosen_by_auto.split(",")) if self.chosen_by_auto else set()

    @property
    def group_size(self) -> int:
        """How many draws the masker groups, of which a batch must be a multiple."""
        return self.learned_masking.group_size if self.masking.name == "learned" else 1


def flatten(config: Config) -> dict[str, Any]:
    """Return all values by dotted key, for example {"seed": 0, "data.root": "shards", ...}."""
    return nested_keys(dataclasses.asdict(config))


def without_secrets(config: Config) -> Config:
    """Return a copy that may be stored and shown: user, password and query of a data URL are removed."""
    return dataclasses.replace(config, data=dataclasses.replace(config.data, root=shown(config.data.root)))


def override(config: Config, values: Mapping[str, Any]) -> Config:
    """Return `config` with dotted keys replaced. Raises ConfigError for unknown keys and invalid values."""
    known = flatten(config)
    sections: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        if key not in known:
            raise ConfigError(f"unknown key {key!r}; {_suggestion(key, known)}{_ALL_KEYS}")
        section, _, name = key.rpartition(".")
        sections.setdefault(section, {})[name] = value
    changed = {s: replaced(getattr(config, s), v, f"{s}.") for s, v in sections.items() if s}
    with usage_errors():
        return dataclasses.replace(replaced(config, sections.get("", {})), **changed)


def replaced(owner: T, values: Mapping[str, Any], section: str = "") -> T:
    """Return a dataclass with fields replaced by `values`, which may be text; errors name them SECTION.NAME.

    Raises ConfigError for unknown names and invalid values.
    """
    kinds = typing.get_type_hints(type(owner))
    known = {field.name: field for field in dataclasses.fields(owner)}
    for name in values:
        if name not in known:
            raise ConfigError(f"unknown key {section + name!r}; {_suggestion(name, known)}{_ALL_KEYS}")
    converted = {name: _convert(section + name, value, kinds[name]) for name, value in values.items()}
    with usage_errors():
        return dataclasses.replace(owner, **converted)


def require_constant(*curricula: CurriculumConfig) -> None:
    """Raise ConfigError where none of the curricula uses --temperature."""
    if all(chosen.name != "none" and chosen.temp_schedule != "constant" for chosen in curricula):
        raise ConfigError("--temperature needs --temp-schedule constant; the other schedules start from --r0")


def parse_settings(settings: list[str]) -> dict[str, Any]:
    """Parse `--set section.key=value` arguments into dotted keys; values are YAML scalars or lists."""
    parsed = {}
    for setting in settings:
        key, separator, text = setting.partition("=")
        if not separator:
            raise ConfigError(f"--set {setting!r} has no '='; write --set section.key=value")
        parsed[key.strip()] = _yaml(text, f"--set {setting!r}")
    return parsed


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a configuration file into dotted keys. Raises ConfigError."""
    try:
        with open_regular(path) as file:
            text = file.read(_LONGEST + 1).decode()
        if len(text) > _LONGEST:
            raise ConfigError(f"{path} is not a configuration: it has more than {_LONGEST:,} characters")
        tree = _yaml(text, str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} is not a configuration: it must be sections with keys, as in a run's config.yaml")
    return nested_keys(tree)


def nested_keys(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return the dotted keys of a tree of sections."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{inner}": v for inner, v in value.items()}
        else:
            flat[str(key)] = value
    return flat


def write_yaml(path: Path, config: Config) -> None:
    """Write every value, so that the file describes the run completely."""
    tree = dataclasses.asdict(config)
    tree["optim"]["betas"] = list(config.optim.betas)
    with atomic_file(path) as file:
        file.write(yaml.safe_dump(tree, sort_keys=False).encode())


def as_yaml(value: Any) -> str:
    """Return a value as one line of YAML."""
    text = yaml.safe_dump(list(value) if isinstance(value, tuple) else value, default_flow_style=True, width=10**9)
    return text.removesuffix("\n").removesuffix("\n...")


def _yaml(text: str, where: str) -> Any:
    try:
        depth = 0
        for event in yaml.parse(text, yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            # Ten lines of aliases can expand beyond memory; nested values take quadratic time.
            if isinstance(event, yaml.AliasEvent) or depth > _DEEPEST:
                raise ConfigError(f"{where} is not plain YAML: it has aliases or deep nesting; write plain values")
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{where} is not plain YAML: {error}") from None


def _suggestion(key: str, known: Mapping[str, Any]) -> str:
    by_name = [full for full in known if full.rpartition(".")[2] == key.rpartition(".")[2]]
    near = by_name or difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]}? " if near else ""


def _convert(key: str, value: Any, kind: Any) -> Any:
    """Convert `value` to `kind`. Numbers may be text, since YAML 1.1 reads 1e-3 as text; nothing else is guessed."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        if value in arguments:
            return value
        raise ConfigError(f"{key} is {value!r}; choose one of {', '.join(map(str, arguments))}")
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        return _convert(key, value, next(a for a in arguments if a is not type(None)))
    if origin is tuple:
        if isinstance(value, list | tuple) and len(value) == len(arguments):
            return tuple(_convert(key, v, a) for v, a in zip(value, arguments, strict=True))
    elif kind in (int, float):
        try:
            number = kind(value)
            if not isinstance(value, bool) and math.isfinite(number) and (kind is float or number == float(value)):
                return number
        except (TypeError, ValueError, OverflowError):
            pass
    elif isinstance(value, kind):
        return value
    name = f"{len(arguments)} numbers" if origin is tuple else {int: "a whole number", float: "a number"}.get(kind)
    raise ConfigError(f"{key} is {value!r}; it must be {name or {bool: 'true or false', str: 'text'}[kind]}")
