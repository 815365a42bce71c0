"""The time that is left of a comparison, from the lines of finished runs and from pilot runs."""

import json

import pytest

from mimcl.cli.compare.remaining import Remaining
from mimcl.cli.report.read import read_run


@pytest.fixture
def finished(tmp_path):
    """A run of 640 draws at 64 images/s; the first line, of its warm-up, is slower."""
    rates = [8.0, 64.0, 60.0, 64.0, 68.0]
    lines = [{"step": n, "draw": 128 * n, "loss": 1.0, "images_per_second": rate} for n, rate in enumerate(rates, 1)]
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return read_run(tmp_path)


def test_nothing_is_said_before_anything_was_measured():
    assert Remaining({}, 16)([("uniform", 640)]) == ""


def test_finished_runs_tell_how_long_others_take(finished):
    remaining = Remaining({}, 16)
    remaining.add("uniform", finished)
    assert remaining([("uniform", 64 * 60)]) == "about 60 s left"
    assert remaining([("uniform", 64 * 60), ("proto", 64 * 240)]) == (
        "about 5 min left if proto takes as long as the others"
    )
    remaining.add("uniform", finished, float(finished.seconds[-1]) + 30)
    assert remaining([("uniform", 64 * 60)] * 2) == "about 3 min left"  # with start-up and evaluation


def test_a_pilot_counts_until_a_run_has_finished(finished):
    remaining = Remaining({"uniform": 1.0, "proto": 2.0}, 16)
    assert remaining([("uniform", 16 * 100), ("proto", 16 * 100)]) == "about 5 min left"
    remaining.add("uniform", finished)
    assert remaining([("uniform", 64 * 60)]) == "about 60 s left"
