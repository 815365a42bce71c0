"""Reading a run: all valid lines, the time they took, and nothing of damaged or foreign lines."""

import json

import numpy as np
import pytest
from helpers.run_folders import BATCH, RATE, evaluation_line, step_line, window_line, write_run

from mimcl.cli.report.read import read_run
from mimcl.pipeline.files import DataError


def test_lines_become_columns_by_their_kind(tmp_path):
    lines = [
        window_line(0, 0, 1, 0.1),
        step_line(1, 1.5, hard_share=0.2),
        evaluation_line(BATCH, 0.3),
        step_line(2, 1.25),
        window_line(1, 2 * BATCH, 3, 0.4),
        step_line(3, 1.0, hard_share=0.4) | {"grad_norm": None},
    ]
    run = read_run(write_run(tmp_path / "run", lines, np.array([1, 0, 2]), seed=7))
    np.testing.assert_array_equal(run.steps.draw, [BATCH, 2 * BATCH, 3 * BATCH])
    np.testing.assert_array_equal(run.steps["loss"], [1.5, 1.25, 1.0])
    np.testing.assert_array_equal(run.steps["hard_share"], [0.2, np.nan, 0.4])
    np.testing.assert_array_equal(run.steps["grad_norm"], [3.0, 2.5, np.nan])
    np.testing.assert_array_equal(run.windows["max_repeats"], [1, 3])
    assert [(e.key.name, e.draw, e.values["nn"]) for e in run.evaluations] == [("online_knn", BATCH, 0.3)]
    assert (run.config["seed"], run.images, run.final_loss, run.damaged_lines) == (7, 3, 1.0, 0)
    assert not run.steps.has("coverage")


def test_time_is_computed_from_the_logged_rates(tmp_path):
    rates = [100.0, 50.0, None, 200.0]
    lines = [step_line(step, 1.0, rate) for step, rate in zip((1, 3, 4, 6), rates, strict=True)]
    run = read_run(write_run(tmp_path / "run", lines))
    spent = [BATCH / 100, 2 * BATCH / 50, BATCH / 100, 2 * BATCH / 200]  # 100 is the median of what is known
    np.testing.assert_allclose(run.seconds, np.cumsum(spent))
    halfway = run.seconds_at(np.array([0, 2 * BATCH]))
    np.testing.assert_allclose(halfway, [0, BATCH / 100 + BATCH / 50])


def test_damaged_lines_are_counted_except_an_incomplete_last_one(tmp_path):
    run = write_run(tmp_path / "run", [step_line(step, 1.0) for step in range(1, 6)])
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    foreign = [b'{"epoch": 3, "loss": 0.1}\n', b"[1, 2]\n", b"\xff\x00\n", b"[" * 9999 + b"\n", b'{"draw": true}\n']
    (run / "metrics.jsonl").write_bytes(b"".join([*lines[:2], *foreign, *lines[2:], lines[0][:25]]))
    found = read_run(run)
    assert (len(found.steps), found.damaged_lines) == (5, len(foreign))


def test_values_that_are_not_numbers_become_nan(tmp_path):
    run = write_run(tmp_path / "run", [step_line(1, 1.0)])
    odd = step_line(2, 1.0) | {"loss": [1, 2], "lr": "<b>", "grad_norm": 10**400, "data_wait": True}
    with open(run / "metrics.jsonl", "a") as file:
        file.write(json.dumps(odd) + "\n" + json.dumps(step_line(3, 1.0)).replace('"loss": 1.0', '"loss": NaN') + "\n")
    steps = read_run(run).steps
    np.testing.assert_array_equal(steps["loss"], [1.0, np.nan, np.nan])
    np.testing.assert_array_equal(steps["grad_norm"][:2], [2.0, np.nan])
    np.testing.assert_array_equal(steps["lr"][:2], [1e-3, np.nan])


def test_the_last_of_equal_lines_counts(tmp_path):
    lines = [step_line(1, 1.0), step_line(2, 1.0), step_line(2, 3.0)]
    lines += [evaluation_line(64, 0.1, k=20), evaluation_line(128, 0.2, k=20), evaluation_line(64, 0.15, k=20)]
    lines += [evaluation_line(64, 0.3, k=5)]
    run = read_run(write_run(tmp_path / "run", lines))
    np.testing.assert_array_equal(run.steps["loss"], [1.0, 3.0])
    assert sorted((e.key.settings, e.draw, e.values["nn"]) for e in run.evaluations) == [
        ('{"k": 20}', 64, 0.15),
        ('{"k": 20}', 128, 0.2),
        ('{"k": 5}', 64, 0.3),
    ]
    assert {key.settings: e.values["nn"] for key, e in run.last_evaluations().items()} == {
        '{"k": 20}': 0.2,
        '{"k": 5}': 0.3,
    }


def test_a_folder_that_is_not_a_run_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"nowhere .*config\.yaml"):
        read_run(tmp_path / "nowhere")
    run = write_run(tmp_path / "run", [])
    with pytest.raises(DataError, match=r"metrics\.jsonl has no line of a step"):
        read_run(run)
    (run / "metrics.jsonl").unlink()
    with pytest.raises(DataError, match=r"no metrics\.jsonl"):
        read_run(run)
    (run / "metrics.jsonl").mkdir()
    with pytest.raises(DataError, match=r"metrics\.jsonl cannot be read"):
        read_run(run)


def test_counts_fingerprints_and_bad_samples_are_optional(tmp_path):
    bare = read_run(write_run(tmp_path / "bare", [step_line(1, 1.0)]))
    assert (bare.counts, bare.fingerprints, bare.checkpoints, bare.bad_samples) == (None, {}, [], 0)
    full = write_run(tmp_path / "full", [step_line(1, 1.0, RATE)], np.array([4, 0]), index="abc")
    (full / "quarantine.jsonl").write_text('{"draw": 3}\n{"draw": 9}\n')
    found = read_run(full)
    assert (found.counts.tolist(), found.fingerprints["index"], found.bad_samples) == ([4, 0], "abc", 2)
    assert [path.name for path in found.checkpoints] == ["00000001"]
    np.save(full / "draw_counts.npy", np.array([{"a": 1}]), allow_pickle=True)
    assert read_run(full).counts is None
