"""The choices of the command line are those of the configuration."""

from typing import get_args, get_type_hints

import pytest

from mimcl.cli import options
from mimcl.cli.recipes import RECIPES
from mimcl.cli.train import train_command
from mimcl.curriculum.config import CurriculumConfig
from mimcl.curriculum.masking.masking_config import MaskingConfig
from mimcl.pipeline.data_config import DataConfig


def choices(parameter: str) -> tuple:
    """Of an optional parameter of `mimcl train` with a Literal type."""
    (literal,) = (kind for kind in get_args(get_type_hints(train_command)[parameter]) if kind is not type(None))
    return get_args(literal)


@pytest.mark.parametrize(
    ("parameter", "config", "field"),
    [
        ("curriculum", CurriculumConfig, "name"),
        ("resampling", CurriculumConfig, "resampling"),
        ("order", CurriculumConfig, "order"),
        ("masking", MaskingConfig, "name"),
        ("decoder", DataConfig, "decoder"),
    ],
)
def test_a_flag_accepts_what_its_key_accepts(parameter, config, field):
    assert choices(parameter) == get_args(get_type_hints(config)[field])


def test_schedules_and_recipes_are_those_that_exist():
    assert tuple(options.TempSchedule) == get_args(get_type_hints(CurriculumConfig)["temp_schedule"])
    assert choices("recipe") == ("auto", *RECIPES)


def test_set_wins_over_flags_and_flags_over_the_file(tmp_path):
    (tmp_path / "c.yaml").write_text("seed: 1\ncurriculum: {r0: 0.2, temp_schedule: linear}\n")
    flags = {"seed": 2, "r0": None, "temp_schedule": options.TempSchedule.STEP}
    values = options.config_values(flags, tmp_path / "c.yaml", {"seed": 3})
    assert values == {"seed": 3, "curriculum.r0": 0.2, "curriculum.temp_schedule": "step"}
    assert type(values["curriculum.temp_schedule"]) is str
