"""`mimcl train --init` in several processes: all start from the same weights."""

import pytest
from helpers import ranks
from helpers.small_runs import FEW_PATCHES, assert_close_runs, train

pytestmark = pytest.mark.slow


def test_two_processes_start_from_the_same_weights_as_one(home, tmp_path):
    def trained(name, *more, size=1):
        ranks.run(home, *train(tmp_path / name, FEW_PATCHES, *more, steps=2), size=size, before=ranks.shrink_model)
        return tmp_path / name

    first = trained("first", "seed=3")
    init = f"init={first}"
    assert_close_runs(trained("one", init), trained("two", init, size=2), tolerance=1e-5)
    assert "initial weights: encoder and decoder" in (home / "rank-0.log").read_text()
    assert "initial weights" not in (home / "rank-1.log").read_text()
