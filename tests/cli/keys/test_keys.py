"""`mimcl keys`: all keys of all configurations, each with its help, and what --set accepts."""

import json
import os
import subprocess
import sys

import pytest

from mimcl.cli.config import Config, flatten, override, parse_settings, replaced
from mimcl.cli.errors import ConfigError
from mimcl.cli.keys.key_list import finetune_keys, matching, shown, train_keys
from mimcl.cli.recipes import RECIPES, recipe
from mimcl.model.evaluate.finetune_config import FinetuneConfig

ALL = [*train_keys(), *finetune_keys()]


def run(*words, **environment):
    command = [sys.executable, "-m", "mimcl.cli.main", "keys", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    return done.returncode, done.stdout, done.stderr


def test_no_key_is_missing():
    assert [key.key for key in train_keys()] == list(flatten(Config()))
    assert [key.key for key in finetune_keys()] == list(vars(FinetuneConfig()))


@pytest.mark.parametrize("key", ALL, ids=lambda key: key.key)
def test_every_key_has_one_line_of_help(key):
    assert 8 <= len(key.help) <= 120
    assert key.help.endswith(".")
    assert key.help[0].isupper()
    assert "\n" not in key.help
    if key.key.rpartition("_")[2] in ("size", "epochs", "steps", "threads") and "heads" not in key.key:
        assert key.unit


@pytest.mark.parametrize("key", train_keys(), ids=lambda key: key.key)
def test_defaults_and_choices_are_what_set_accepts(key):
    values = [shown(key.default), *key.choices]
    for value in values:
        changed = override(Config(), parse_settings([f"{key.key}={value}"]))
        if value == values[0]:
            assert flatten(changed)[key.key] == flatten(Config())[key.key]


def test_patterns():
    def found(pattern):
        return [key.key for key in matching(train_keys(), pattern)]

    assert found("lr") == ["optim.base_lr"]
    assert found("optim.*") == [f"optim.{name}" for name in ("base_lr", "weight_decay", "warmup_epochs", "betas")]
    assert found("*.batch_size") == ["data.batch_size"]
    assert found("batch_size") == ["data.batch_size", "data.micro_batch_size"]
    assert found("") == list(flatten(Config()))
    assert found("nonsense") == []


def test_a_line_for_each_key_where_there_is_no_terminal():
    code, out, error = run("mask")
    assert (code, error) == (0, "")
    (ratio,) = [line for line in out.splitlines() if "masking.mask_ratio" in line]
    assert " ".join(ratio.split()) == (
        "masking.mask_ratio FLOAT Share of the patches that is removed from every image, above 0 and below 1. "
        "[default: 0.75] [flag: --mask-ratio]"
    )
    assert "\x1b" not in out
    everything = run()[1]
    assert all(f"  {key.key} " in everything for key in ALL)
    assert "[flag: --temp-schedule]" in everything
    assert len(everything.splitlines()) < len(ALL) + 30
    narrow = run(COLUMNS="60")[1]
    assert max(map(len, narrow.splitlines())) <= 60


@pytest.mark.parametrize("name", RECIPES)
def test_defaults_are_those_of_the_recipe(name):
    code, out, _ = run("--recipe", name, "--json")
    assert code == 0
    listed = {key["key"]: key["default"] for key in json.loads(out)["train"]}
    assert listed == json.loads(json.dumps(flatten(recipe(name))))


def test_a_pattern_without_keys_and_unknown_keys_point_to_the_list():
    assert run("nonsense") == (2, "", "mimcl: no key matches 'nonsense'; `mimcl keys` lists all\n")
    command = [sys.executable, "-m", "mimcl.cli.main", "plan", "--recipe", "cpu_small", "--set"]
    for setting, line in {
        "qqqqq=3": "unknown key 'qqqqq'; `mimcl keys` lists all",
        "data.batchsize=3": "unknown key 'data.batchsize'; did you mean data.batch_size? `mimcl keys` lists all",
    }.items():
        assert subprocess.run([*command, setting], capture_output=True, text=True).stderr == f"mimcl: {line}\n"
    with pytest.raises(ConfigError, match="unknown key 'mixupp'; did you mean mixup\\? `mimcl keys` lists all"):
        replaced(FinetuneConfig(), {"mixupp": 1})
