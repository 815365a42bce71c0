"""What a user changes on a resume is named as such, and what follows from it follows."""

from pathlib import Path

import pytest

from mimcl.cli.config import flatten, override
from mimcl.cli.errors import ConfigError
from mimcl.cli.recipes import cpu_small
from mimcl.cli.run.resolve import RESOLVED, draws_of, resolve
from mimcl.cli.run.resumed_config import resumed_config

SAMPLES = 3200  # 50 steps an epoch, windows of 256 draws


def saved(samples=SAMPLES, **values):
    config = override(cpu_small(), {"trainer.epochs": 3.0} | values)
    window = config.curriculum.window_length(samples, config.data.batch_size)
    return resolve(config, window, "reference", draws_of(config, samples) // config.data.batch_size)


def resumed(config, *allowed, samples=SAMPLES, **values):
    return resumed_config(config, Path("runs/a b"), None, values, allowed, samples, pytest.fail)


def test_the_same_values_as_when_the_run_was_started_are_no_change():
    values = {"trainer.epochs": 3, "optim.warmup_epochs": 5, "trainer.precision": "auto", "curriculum.order": "auto"}
    config = saved(**values, **{"curriculum.window": None, "trainer.keep_every_steps": None})
    assert resumed(config, **values, **{"curriculum.window": None}) == config
    for other in ({"curriculum.order": "shard"}, {"trainer.precision": "float32"}):
        config = saved(**other)
        assert resumed(config, **values) == config  # auto means the run's own


@pytest.mark.parametrize("config_file", [{}, {"optim.warmup_epochs": 5.0}])
@pytest.mark.parametrize(("epochs", "warmup"), [(5.0, 0.3), (2.0, 0.2), (50.0, 0.3)])
def test_other_epochs_are_named_and_nothing_that_follows(epochs, warmup, config_file):
    config = saved()
    values = config_file | {"trainer.epochs": epochs}
    with pytest.raises(ConfigError) as raised:
        resumed(config, **values)
    assert raised.value.format_message() == (
        f"trainer.epochs is {epochs} but the run in runs/a b has 3.0; leave it out, or allow it with "
        "--allow-change trainer.epochs"
    )
    found = resumed(config, "trainer.epochs", **values)
    assert (found.trainer.epochs, found.optim.warmup_epochs) == (epochs, warmup)


def test_all_changes_are_named():
    with pytest.raises(ConfigError) as raised:
        resumed(saved(), "optim.base_lr", **{"seed": 1, "trainer.epochs": 5, "optim.base_lr": 1.0})
    assert raised.value.format_message() == (
        "seed is 1, trainer.epochs is 5.0 but the run in runs/a b has 0, 3.0; leave them out, or allow them with "
        "--allow-change seed --allow-change trainer.epochs"
    )


def test_a_warm_up_that_is_cut_is_still_a_change():
    with pytest.raises(ConfigError, match="optim.warmup_epochs is 40.0 but .* has 0.1"):
        resumed(saved(**{"optim.warmup_epochs": 0.1}), **{"optim.warmup_epochs": 40})


def test_the_window_follows_its_slice_and_the_batch():
    config = saved()
    assert config.curriculum.window == 256
    assert resumed(config, "curriculum.slice", **{"curriculum.slice": 0.5}).curriculum.window == 1600
    assert resumed(config, "data.batch_size", **{"data.batch_size": 96}).curriculum.window == 384
    both = {"curriculum.slice": 0.5, "curriculum.window": 512}
    assert resumed(config, *both, **both).curriculum.window == 512
    given = saved(**{"curriculum.window": 640})
    assert resumed(given, "curriculum.slice", **{"curriculum.slice": 0.5}).curriculum.window == 640


@pytest.mark.parametrize(
    "values", [{"trainer.epochs": 60.0}, {"trainer.checkpoint_every_steps": 10}, {"data.batch_size": 8}]
)
def test_which_checkpoints_stay_follows_the_length_unless_it_was_given(values):
    followed = resumed(saved(), *values, **values)
    assert followed.trainer.keep_every_steps is None  # derived again when training starts
    given = saved(**{"trainer.keep_every_steps": 70})
    assert resumed(given, *values, **values).trainer.keep_every_steps == 70
    unknown = resumed(saved(), *values, samples=None, **values)
    assert unknown.trainer.keep_every_steps == saved().trainer.keep_every_steps


def test_resolving_changes_no_other_values():
    config = override(cpu_small(), {"trainer.epochs": 3.0})
    before, after = flatten(config), flatten(saved())
    assert {key for key in before if before[key] != after[key]} == RESOLVED
