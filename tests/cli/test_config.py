"""Configuration: typed, complete, and errors that name the nearest key."""

import pytest
import yaml

from mimcl.cli.config import Config, flatten, override, parse_settings, read_yaml, write_yaml
from mimcl.cli.errors import ConfigError
from mimcl.cli.recipes import RECIPES, recipe


def test_override_converts_and_replaces():
    values = parse_settings(
        [
            "optim.base_lr=1e-3",
            "data.batch_size=128",
            "trainer.compile=true",
            "curriculum.window=null",
            "optim.betas=[0.9, 0.99]",
        ]
    )
    changed = override(Config(), values | {"seed": 5})
    assert changed.optim.base_lr == 1e-3
    assert changed.data.batch_size == 128
    assert changed.trainer.compile is True
    assert changed.curriculum.window is None
    assert changed.optim.betas == (0.9, 0.99)
    assert changed.seed == 5
    assert changed.optim.weight_decay == Config().optim.weight_decay


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("data.batchsize=3", "unknown key 'data.batchsize'; did you mean data.batch_size"),
        ("batch_size=3", "did you mean data.batch_size"),
        ("nonsense.qqq=3", "unknown key"),
        ("data.batch_size=many", "data.batch_size is 'many'; it must be a whole number"),
        ("data.batch_size=1.5", "must be a whole number"),
        ("data.batch_size=true", "must be a whole number"),
        ("data.batch_size=0", "data.batch_size is 0; it must be at least 1"),
        ("optim.base_lr=fast", "must be a number"),
        ("trainer.compile=1", "must be true or false"),
        ("data.root=[1]", "must be text"),
        ("optim.betas=0.9", "must be 2 numbers"),
        ("curriculum.name=easy", "choose one of none, proto, anti"),
        ("curriculum.r0=0.7", "curriculum.r0"),
        ("masking.mask_ratio=1", "masking.mask_ratio"),
        ("data.batch_size", "has no '='"),
        ("data.root=: :", "not plain YAML"),
        ("data.root=!!python/object/apply:os.system ['true']", "not plain YAML"),
    ],
)
def test_bad_settings_are_one_line_errors(setting, message):
    with pytest.raises(ConfigError) as caught:
        override(Config(), parse_settings([setting]))
    assert message in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("name", RECIPES)
def test_a_written_configuration_reads_back_whole(tmp_path, name):
    config = override(recipe(name), {"seed": 3, "curriculum.name": "proto"})
    write_yaml(tmp_path / "config.yaml", config)
    assert override(Config(), read_yaml(tmp_path / "config.yaml")) == config
    tree = yaml.safe_load((tmp_path / "config.yaml").read_text())
    sections = {name: keys for name, keys in tree.items() if isinstance(keys, dict)}
    assert set(flatten(config)) == {f"{s}.{k}" for s, keys in sections.items() for k in keys} | (tree.keys() - sections)
    assert {"seed", "recipe"} <= tree.keys()


def test_files_that_are_no_configuration(tmp_path):
    path = tmp_path / "config.yaml"
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(path)
    path.write_text("- a\n")
    with pytest.raises(ConfigError, match="not a configuration"):
        read_yaml(path)
    path.write_text("data: {bach_size: 3}\n")
    with pytest.raises(ConfigError, match="did you mean data.batch_size"):
        override(Config(), read_yaml(path))


def test_recipes_say_what_they_are():
    for name, function in RECIPES.items():
        assert function().recipe == name
        assert f"mimcl train --recipe {name}" in function.__doc__
    paper = recipe("mae_b16")
    assert (paper.data.batch_size, paper.optim.base_lr, paper.optim.warmup_epochs) == (4096, 1.5e-4, 40)
    assert (paper.trainer.epochs, paper.model.norm_pix_loss, paper.model.patch_size) == (800, True, 16)
    with pytest.raises(ConfigError, match="unknown recipe 'big'.*cifar_tiny"):
        recipe("big")
