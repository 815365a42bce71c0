"""Runs that train at the same time: a run that fails stops the others."""

import pytest
from helpers.images import write_train_val

from mimcl.cli.compare.children import ChildError
from mimcl.cli.data.shard import shard
from mimcl.cli.demo.side_by_side import log_of, train_side_by_side

pytestmark = pytest.mark.slow


def test_a_run_that_fails_stops_the_others(tmp_path):
    write_train_val(tmp_path / "images", dict.fromkeys("ab", 64), dict.fromkeys("ab", 4))
    shard(tmp_path / "images", tmp_path / "shards")
    endless = ["--recipe", "cpu_small", "--data", str(tmp_path / "shards"), "--epochs", "100000", "--out"]
    good, bad = tmp_path / "good", tmp_path / "bad"
    arguments = {good: [*endless, str(good)], bad: [*endless, str(bad), "--init", str(tmp_path / "missing")]}
    with pytest.raises(ChildError, match=r"`mimcl train` failed with exit code 1: .*missing.*; see .*bad\.log"):
        train_side_by_side(arguments, draws=12_800_000)
    assert log_of(good).is_file()  # it has ended too, though it was to train for days
