"""The demo's table and its sentences claim no more than the intervals allow."""

import shlex
from pathlib import Path

import numpy as np
import pytest

from mimcl.cli.compare.arms import DATA
from mimcl.cli.demo.demo_config import ARMS, CONTROL, FAST, STUDY, DemoConfig
from mimcl.cli.demo.demo_table import conclusion, print_table
from mimcl.cli.demo.paired import Difference


def correct(shares: dict[str, float]) -> dict[str, np.ndarray]:
    """Return 800 images for each encoder, the first of them classified correctly."""
    return {name: np.arange(800) < 800 * share for name, share in shares.items()}


def printed(capsys, config: DemoConfig, **shares: float) -> list[str]:
    print_table(correct({"untrained": 0.4, **shares}), config, Path("a b/shards"))
    return capsys.readouterr().out.splitlines()


def test_a_row_for_each_encoder_with_its_standard_error_and_gain(capsys):
    lines = printed(capsys, DemoConfig(), **{CONTROL: 0.5, "proto": 0.52})
    rows = {line.split()[0]: line.split() for line in lines if " encoder " in line}
    assert rows["untrained"][2:] == ["40.0", "±", "1.7", "%"]
    assert rows[CONTROL][2:] == ["50.0", "±", "1.8", "%", "+10.0", "±", "1.1", "points"]
    assert rows["proto"][2:] == ["52.0", "±", "1.8", "%", "+12.0", "±", "1.1", "points"]


@pytest.mark.parametrize(
    ("value", "interval", "better"),
    [
        (0.02, "-0.9 to +4.9", None),
        (-0.029, "-5.8 to +0.0", None),
        (0.0, "-2.9 to +2.9", None),
        (0.031, "+0.2 to +6.0", "proto"),
        (-0.031, "-6.0 to -0.2", CONTROL),
    ],
)
def test_one_encoder_is_better_only_where_the_interval_excludes_0(value, interval, better):
    sentence = conclusion(Difference(value, 0.015))
    assert f"{100 * value:+.1f} ± 1.5 points, 95 % interval {interval} " in sentence
    claim = f"that of {better} is better" if better else "do not show which of the two is better"
    assert claim in sentence


def test_it_names_the_study_and_a_command_that_compares_over_seeds(capsys):
    lines = printed(capsys, DemoConfig(), **{CONTROL: 0.5, "proto": 0.5})
    assert any("One seed says nothing about another" in line and STUDY in line for line in lines)
    words = shlex.split(lines[-1])
    assert words[:2] == ["mimcl", "compare"]
    assert words[words.index("--data") + 1] == "a b/shards"
    assert words[words.index("--arms") + 1].split(",") == list(ARMS)


def test_fast_concludes_nothing(capsys):
    lines = printed(capsys, FAST, **{CONTROL: 0.2, "proto": 0.9})
    assert any("too short to show anything" in line for line in lines)
    assert not any("better" in line or "interval" in line for line in lines)


def test_the_control_is_an_arm_of_compare_without_the_curriculum():
    assert ARMS == (CONTROL, "proto")
    assert DATA[CONTROL]["curriculum.name"] in ("none", "subset")
