"""A run's configuration: differences from the recipe, and the command that reproduces it."""

import shlex
from itertools import pairwise

import pytest

from mimcl.cli.config import flatten, override, parse_settings, read_yaml, write_yaml
from mimcl.cli.recipes import recipe
from mimcl.cli.report.settings import settings, train_command_line
from mimcl.cli.run.config_diff import config_diff
from mimcl.cli.run.resolve import has_bfloat16, resolve

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
    words = shlex.split(train_command_line(read))
    assert words[:4] == ["mimcl", "train", "--recipe", "cpu_small"]
    values = [word for flag, word in pairwise(words) if flag == "--set"]
    assert flatten(override(recipe("cpu_small"), parse_settings(values))) == flatten(config)
    assert len(values) == len(CHOSEN)


def test_differences_from_the_recipe_are_marked_unless_they_depend_on_the_machine(tmp_path):
    _, read = written(tmp_path)
    rows = {f"{row.section}.{row.name}".lstrip("."): row for row in settings(read)}
    assert rows.keys() == read.keys()
    assert {key for key, row in rows.items() if row.chosen} == CHOSEN.keys() - {"curriculum.window", "data.root"}
    assert (rows["curriculum.window"].value, rows["curriculum.window"].recipe) == ("640", "null")
    assert (rows["optim.base_lr"].value, rows["optim.base_lr"].recipe) == ("1.0e-05", "0.0015")
    assert rows["data.batch_size"].recipe is None


@pytest.mark.parametrize("epochs", [50, 20])
def test_derived_values_are_not_marked_but_chosen_ones_are(tmp_path, epochs):
    def marked(samples=6400, **values):
        config = override(recipe("cpu_small"), {"trainer.epochs": epochs})
        config = override(config, {key: value for key, value in values.items() if key == "curriculum.slice"})
        window = config.curriculum.window_length(6400, config.data.batch_size)
        config = override(resolve(config, window, "reference"), values)
        write_yaml(tmp_path / "config.yaml", config)
        read = read_yaml(tmp_path / "config.yaml")
        assert {row.name for row in settings(read, samples) if row.chosen} == {
            key.rpartition(".")[2] for key in config_diff(config, samples)
        }
        return config_diff(config, samples).keys() - {"trainer.epochs"}

    other = "float32" if has_bfloat16() else "bfloat16"
    assert marked() == marked(samples=None) == set()
    assert marked(**{"optim.warmup_epochs": 1.0}) == {"optim.warmup_epochs"}
    assert marked(**{"trainer.precision": other}) == {"trainer.precision"}
    assert marked(**{"curriculum.window": 640}) == {"curriculum.window"}
    assert marked(**{"curriculum.order": "shard"}) == {"curriculum.order"}
    assert marked(**{"curriculum.slice": 0.5}) == {"curriculum.slice"}  # and not the window that follows from it
    assert marked(**{"data.decoder": "auto", "data.decode_threads": 99, "data.root": "there"}) == set()


def test_an_unknown_recipe_marks_nothing(tmp_path):
    _, read = written(tmp_path)
    read["recipe"] = "mine"
    assert not any(row.chosen for row in settings(read))
    assert "--recipe" not in train_command_line(read)
