"""A run's configuration: what differs from the recipe, and the command that gives it again."""

import shlex
from itertools import pairwise

from mimcl.cli.config import flatten, override, parse_settings, read_yaml, write_yaml
from mimcl.cli.recipes import recipe
from mimcl.cli.report.settings import command, settings

CHOSEN = {
    "curriculum.name": "proto",
    "optim.base_lr": 1e-5,
    "optim.betas": [0.8, 0.99],
    "model.norm_pix_loss": False,
    "data.root": "my shards; rm -rf 'x'",
    "curriculum.window": 640,
    "seed": 3,
}


def written(tmp_path):
    config = override(recipe("cpu_small"), CHOSEN)
    write_yaml(tmp_path / "config.yaml", config)
    return config, read_yaml(tmp_path / "config.yaml")


def test_the_command_gives_the_same_configuration(tmp_path):
    config, read = written(tmp_path)
    words = shlex.split(command(read))
    assert words[:4] == ["mimcl", "train", "--recipe", "cpu_small"]
    values = [word for flag, word in pairwise(words) if flag == "--set"]
    assert flatten(override(recipe("cpu_small"), parse_settings(values))) == flatten(config)
    assert len(values) == len(CHOSEN)


def test_what_differs_from_the_recipe_is_marked_unless_it_was_found(tmp_path):
    _, read = written(tmp_path)
    rows = {f"{row.section}.{row.name}".lstrip("."): row for row in settings(read)}
    assert rows.keys() == read.keys()
    assert {key for key, row in rows.items() if row.chosen} == CHOSEN.keys() - {"curriculum.window"}
    assert (rows["curriculum.window"].value, rows["curriculum.window"].recipe) == ("640", "null")
    assert (rows["optim.base_lr"].value, rows["optim.base_lr"].recipe) == ("1.0e-05", "0.0015")
    assert rows["data.batch_size"].recipe is None


def test_an_unknown_recipe_marks_nothing(tmp_path):
    _, read = written(tmp_path)
    read["recipe"] = "mine"
    assert not any(row.chosen for row in settings(read))
    assert "--recipe" not in command(read)
