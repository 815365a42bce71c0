"""Arms and seeds: grouping runs, and means with their spread."""

import math

import numpy as np
import pytest
from helpers.run_folders import BATCH, evaluation_line
from helpers.run_folders import evaluated_run as made
from scipy import stats

from mimcl.cli.report.compared import measurements
from mimcl.cli.report.curves import mean_curve
from mimcl.cli.report.several import arms_of, curve_key
from mimcl.cli.report.several_page import several_page
from mimcl.cli.report.statistics import summarize
from mimcl.pipeline.files import DataError


@pytest.mark.parametrize("values", [[0.41, 0.47, 0.44], [1.0, 2.0], list(np.random.default_rng(0).random(17))])
def test_mean_spread_and_interval_agree_with_scipy(values):
    found = summarize(values)
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    assert (found.n, found.mean) == (len(values), pytest.approx(np.mean(values)))
    assert found.sd == pytest.approx(stats.tstd(values))
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


def test_the_interval_of_two_seeds_by_hand():
    found = summarize([0.4, math.nan, 0.5])
    assert (found.n, found.mean) == (2, pytest.approx(0.45))
    assert found.high - found.mean == pytest.approx(12.7062 * math.sqrt(0.005) / math.sqrt(2), rel=1e-5)


def test_one_value_has_no_spread_and_no_value_has_no_mean():
    assert (summarize([3.0]).mean, summarize([3.0]).n) == (3.0, 1)
    assert math.isnan(summarize([3.0]).sd)
    assert math.isnan(summarize([3.0]).low)
    assert math.isnan(summarize([]).mean)


def test_seeds_of_one_configuration_are_an_arm_and_labels_say_what_differs(tmp_path):
    runs = [
        made(tmp_path, "a", curriculum__name="proto", seed=0),
        made(tmp_path, "b", curriculum__name="none", seed=0, data__root="elsewhere"),
        made(tmp_path, "c", curriculum__name="proto", seed=1, trainer__log_every_steps=3),
        made(tmp_path, "d", curriculum__name="proto", curriculum__r0=0.3, seed=1),
    ]
    arms = arms_of(runs)
    assert [(arm.label, [run.name for run in arm.runs]) for arm in arms] == [
        ("curriculum proto, r0 0.15", ["a", "c"]),
        ("curriculum none, r0 0.15", ["b"]),
        ("curriculum proto, r0 0.3", ["d"]),
    ]
    assert [arm.label for arm in arms_of(runs[::2])] == ["cpu_small, proto, random"]


def test_many_differences_still_tell_arms_apart(tmp_path):
    keys = ("optim__base_lr", "optim__weight_decay", "curriculum__r0", "curriculum__share", "masking__mask_ratio")
    runs = [made(tmp_path, str(value), **dict.fromkeys(keys, value)) for value in (0.25, 0.5)]
    runs += [made(tmp_path, "third", **dict.fromkeys(keys[:-1], 0.25), masking__mask_ratio=0.5)]
    labels = [arm.label for arm in arms_of(runs)]
    assert len(set(labels)) == 3


def test_the_same_configuration_on_other_data_is_another_arm(tmp_path):
    runs = [made(tmp_path, str(n), seed=n, index="abcdef0123" if n < 2 else "123456789a") for n in range(3)]
    arms = arms_of(runs)
    assert [len(arm.runs) for arm in arms] == [2, 1]
    assert arms[1].label.endswith("data 123456")
    pooled = several_page(arms_of(runs, ["x", "x", "x"]), tmp_path / "page.html")
    assert any("same data" in line for line in pooled.warnings)


def test_given_labels_are_used_and_must_be_complete(tmp_path):
    runs = [made(tmp_path, str(n), seed=n) for n in range(3)]
    assert [(arm.label, len(arm.runs)) for arm in arms_of(runs, ["b", "a", "b"])] == [("b", 2), ("a", 1)]
    with pytest.raises(DataError, match="2 labels"):
        arms_of(runs, ["a", "b"])


def test_different_settings_or_data_never_share_a_mean(tmp_path):
    def line(nn, k, index="f" * 32):
        return evaluation_line(640, nn, "knn", k=k) | {"index": index}

    runs = [
        made(tmp_path, "0", lines=[line(0.4, 20)]),
        made(tmp_path, "1", lines=[line(0.6, 20), line(0.9, 5)]),
        made(tmp_path, "2", lines=[line(0.1, 20, "e" * 32)]),
    ]
    found = [m for m in measurements(arms_of(runs, ["x"] * 3)) if m.title == "knn: nn"]
    by_settings = {m.detail: m.rows[0].summary for m in found}
    assert by_settings.keys() == {"k 20, data ffffff", "k 5, data ffffff", "k 20, data eeeeee"}
    assert (by_settings["k 20, data ffffff"].n, by_settings["k 20, data ffffff"].mean) == (2, pytest.approx(0.5))
    assert by_settings["k 5, data ffffff"].n == 1


def test_online_evaluations_on_other_data_are_not_pooled(tmp_path):
    line = {"evaluation": "online_knn", "draw": 640, "values": {"nn": 0.5}}  # which names no data
    runs = [made(tmp_path, index, lines=[line], index=index, seed=n) for n, index in enumerate(("abc", "abc2"))]
    found = [m for m in measurements(arms_of(runs, ["x", "x"])) if m.title == "online_knn: nn"]
    assert [(m.detail, m.rows[0].summary.n) for m in found] == [("data abc", 1), ("data abc2", 1)]


def test_a_loss_is_not_a_share_and_a_spread_is_not_an_accuracy(tmp_path):
    line = evaluation_line(640, 0.5, "linear")
    line["values"] = {"linear": 0.6, "linear_std": 0.01}
    run = made(tmp_path, "run", lines=[line])
    assert {m.title: m.is_share for m in measurements(arms_of([run]))} == {
        "final loss": False,
        "linear": True,
        "linear: linear std": True,
    }
    assert run.evaluations[0].accuracies == {"linear": 0.6}


@pytest.mark.parametrize("nns", [(0.0, 0.0), (1.0, 1.0), (0.02, 0.4), (0.97, 0.6), (0.3, 0.3)])
def test_the_axis_of_shares_stays_within_0_and_100_percent(tmp_path, nns):
    runs = [made(tmp_path, str(n), nns=(0.1, nn), seed=n) for n, nn in enumerate(nns)]
    loss, nn, _ = measurements(arms_of(runs))
    low, high = nn.extent
    assert 0 <= low <= min(nns) <= max(nns) <= high <= 1
    assert low < high
    summary = nn.rows[0].summary
    ends = [nn.position(value) for value in (summary.low, *nns, summary.high)]
    assert all(0 <= place <= 100 for place in ends)
    assert loss.extent[0] < 0.5 < loss.extent[1]


def test_the_last_evaluation_and_the_last_loss_are_compared(tmp_path):
    runs = [made(tmp_path, str(n), nns=(0.1, 0.2 + n / 10), losses=(1.0, 0.5 + n / 10), seed=n) for n in range(2)]
    loss, nn, _ = measurements(arms_of(runs))
    assert (loss.title, loss.rows[0].values) == ("final loss", [0.5, 0.6])
    assert (nn.rows[0].values, nn.rows[0].draws) == ([0.2, pytest.approx(0.3)], [20 * BATCH])
    assert nn.rows[0].summary.sd == pytest.approx(stats.tstd([0.2, 0.3]))


def test_curves_of_nn_come_from_training_before_checkpoints_and_need_two_points(tmp_path):
    once = made(tmp_path, "once", lines=[evaluation_line(640, 0.4, "knn")])
    assert curve_key(arms_of([once])) is None
    twice = [evaluation_line(640, 0.4, "knn"), evaluation_line(1280, 0.5, "knn")]
    assert curve_key(arms_of([made(tmp_path, "twice", lines=twice)])).name == "knn"
    assert curve_key(arms_of([made(tmp_path, "both", nns=(0.1, 0.2), lines=twice)])).name == "online_knn"


def test_a_mean_curve_ends_with_the_shortest_run(tmp_path):
    runs = [made(tmp_path, "0", losses=(4.0, 2.0, 1.0)), made(tmp_path, "1", losses=(2.0, 2.0, 3.0, 9.0), seed=1)]
    curve = mean_curve([(run.steps.draw.astype(float), run.steps["loss"]) for run in runs])
    np.testing.assert_array_equal(curve.x, np.array([10, 20, 30]) * BATCH)
    np.testing.assert_array_equal(curve.y, [3, 2, 2])
    np.testing.assert_array_equal(curve.low, [2, 2, 1])
    np.testing.assert_array_equal(curve.high, [4, 2, 3])


def test_doubtful_comparisons_give_warnings(tmp_path):
    runs = [made(tmp_path, "0"), made(tmp_path, "1"), made(tmp_path, "2", losses=(1.0,), seed=2)]
    page = several_page(arms_of(runs, ["x"] * 3), tmp_path / "page.html")
    assert any("same seed" in line for line in page.warnings)
    assert any("different lengths" in line for line in page.warnings)
    assert any(
        "given twice" in line for line in several_page(arms_of([runs[0], runs[0]]), tmp_path / "page.html").warnings
    )


@pytest.mark.parametrize(
    ("names", "remarked"), [(("none", "proto"), True), (("subset", "proto"), False), (("none",), False)]
)
def test_a_page_says_where_a_curriculum_has_no_control(tmp_path, names, remarked):
    runs = [made(tmp_path, name, curriculum__name=name, seed=0) for name in names]
    assert ("--curriculum subset" in several_page(arms_of(runs), tmp_path / "page.html").remark) == remarked
