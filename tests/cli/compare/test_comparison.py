"""Means, intervals and paired differences of a comparison agree with scipy."""

import json
import math
from pathlib import Path

import pytest
from scipy import stats

from mimcl.cli.compare.comparison import (
    Figures,
    Quality,
    compare_figures,
    is_evaluated,
    last_protocol,
    read_figures,
    unequal_time,
    write_comparison,
)
from mimcl.cli.compare.table import print_table
from mimcl.cli.report.read import read_run

NN, KNN = (Quality("knn", '{"k": 20}', "ab", name) for name in ("nn", "knn"))


def made(arm, seed, nn, loss=0.5):
    return Figures(arm, seed, Path(f"{arm}-seed{seed}"), 640, loss, 10.0 + seed, {NN: nn, KNN: nn / 2})


RUNS = [
    *(made("uniform", seed, nn) for seed, nn in enumerate((0.40, 0.44, 0.45))),
    *(made("proto", seed, nn, 0.4) for seed, nn in enumerate((0.42, 0.45, 0.49))),
]


def test_intervals_are_students_and_differences_are_paired():
    comparison = compare_figures(sorted(RUNS, key=lambda run: run.seed))  # as they come: seed by seed
    assert [(row.arm, row.quality.name) for row in comparison.rows] == [
        (arm, name) for name in ("nn", "knn") for arm in ("uniform", "proto")
    ]
    base, proto = comparison.rows[:2]
    assert base.difference is None
    assert proto.value.mean == pytest.approx((0.42 + 0.45 + 0.49) / 3)
    paired = stats.ttest_rel([0.42, 0.45, 0.49], [0.40, 0.44, 0.45]).confidence_interval(0.95)
    assert (proto.difference.low, proto.difference.high) == pytest.approx(tuple(paired))
    alone = stats.t.interval(0.95, 2, 0.43, stats.sem([0.40, 0.44, 0.45]))
    assert (base.value.low, base.value.high) == pytest.approx(alone)
    assert proto.loss.mean == pytest.approx(0.4)


def test_seeds_without_a_counterpart_are_left_out_of_differences():
    comparison = compare_figures([RUNS[0], RUNS[3], RUNS[4]])
    difference = comparison.rows[1].difference
    assert (difference.n, difference.mean) == (1, pytest.approx(0.02))
    assert math.isnan(difference.high)


def test_without_evaluations_losses_are_compared(capsys):
    runs = [Figures(arm, 0, Path(arm), 64, loss, 1.0, {}) for arm, loss in (("uniform", 0.5), ("anti", 0.75))]
    comparison = compare_figures(runs)
    assert [row.quality for row in comparison.rows] == [None, None]
    assert comparison.rows[1].difference.mean == 0.25
    print_table(comparison)
    assert "+0.2500" in capsys.readouterr().out


def test_the_table_has_percent_and_half_the_interval(capsys):
    print_table(compare_figures(RUNS))
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[1:-2] == [
        "seeds mean against uniform",
        "knn nn, %",
        "uniform 3 43.0 ± 6.6",
        "proto 3 45.3 ± 8.7 +2.3 ± 3.8",
        "knn knn, %",
        "uniform 3 21.5 ± 3.3",
        "proto 3 22.7 ± 4.4 +1.2 ± 1.9",
        "loss",
        "uniform 3 0.5000 ± 0.0000",
        "proto 3 0.4000 ± 0.0000",
        "training, s",
        "uniform 3 11 ± 2",
        "proto 3 11 ± 2",
        "draws of a run: 640",
    ]


def test_the_table_fits_a_narrow_screen(capsys):
    print_table(compare_figures(RUNS))
    assert max(map(len, capsys.readouterr().out.splitlines()[:-1])) <= 60


def test_the_file_has_every_number_and_no_nan(tmp_path):
    path = tmp_path / "comparison.json"
    write_comparison(path, {"format": "x"}, compare_figures([RUNS[0]]))
    content = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert content["format"] == "x"
    (run,) = content["runs"]
    assert (run["arm"], run["seed"], run["folder"], run["loss"]) == ("uniform", 0, "uniform-seed0", 0.5)
    assert run["qualities"][0] == {
        "evaluation": "knn",
        "settings": '{"k": 20}',
        "index": "ab",
        "name": "nn",
        "value": 0.4,
    }
    assert content["rows"][0]["value"] == {"n": 1, "mean": 0.4, "sd": None, "low": None, "high": None}


def test_training_times_that_differ_by_more_than_3_percent_give_a_warning():
    def runs(seconds):
        return compare_figures([Figures(arm, 0, Path(arm), 64, 0.5, took, {}) for arm, took in seconds.items()])

    assert unequal_time(runs({"uniform": 100.0, "proto": 102.9, "anti": 101.0})) is None
    complaint = unequal_time(runs({"uniform": 103.5, "proto": 101.0, "anti": 100.0}))
    assert "uniform 104 s, anti 100 s" in complaint
    assert unequal_time(runs({"uniform": math.nan, "proto": math.nan})) is None


def test_only_evaluations_with_the_comparisons_protocol_count(tmp_path):
    def line(draw=64, k=20, index="ab", value=0.5, evaluation="knn"):
        settings = {"k": k, "train": 9, "val": 3}
        values = {"draw": draw, "settings": settings, "index": index, "values": {"nn": value}}
        return json.dumps({"evaluation": evaluation} | values) + "\n"

    step = json.dumps({"step": 1, "draw": 64, "loss": 1.0, "images_per_second": 64.0}) + "\n"
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    lines = tmp_path / "metrics.jsonl"
    lines.write_text(step + line(value=0.25))
    protocols = {"knn": last_protocol(tmp_path, "knn")}
    assert is_evaluated(read_run(tmp_path), "knn", protocols)
    assert not is_evaluated(read_run(tmp_path), "knn", {})  # no protocol is known yet
    others = line(k=5) + line(index="cd") + line(draw=32)
    lines.write_text(step + others + line(evaluation="online_knn", value=0.75))
    assert not is_evaluated(read_run(tmp_path), "knn", protocols)
    lines.write_text(lines.read_text() + "{torn\n" + line(value=0.25))
    assert last_protocol(tmp_path, "knn") == protocols["knn"]
    qualities = read_figures("uniform", 0, tmp_path, protocols).qualities
    assert [(key.evaluation, value) for key, value in qualities.items()] == [
        ("online_knn", 0.75),
        ("knn", 0.25),
    ]
