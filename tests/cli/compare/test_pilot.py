"""Equal training time: from seconds per step to epochs."""

import json

import pytest

from mimcl.cli.compare.pilot import STEPS, WARM_STEPS, equal_time, pilot_settings, seconds_per_step


def test_the_first_arm_keeps_its_epochs_and_a_slower_one_gets_fewer():
    seconds = {"proto": 0.1, "proto+hpm": 0.23, "epochs": 0.08, "other": 1.0}
    assert equal_time(100, seconds, ["proto", "proto+hpm", "epochs"]) == {
        "proto": 100,
        "proto+hpm": 43.478,
        "epochs": 125,
    }
    assert equal_time(100, seconds, ["proto+hpm", "proto"]) == {"proto+hpm": 100, "proto": 230}
    assert equal_time(0.001, seconds, ["epochs", "other"])["other"] == 0.001  # never nothing


def test_a_pilot_has_its_steps_whatever_the_data_set():
    for samples in (7, 600, 1_281_167):
        epochs = pilot_settings(4096, samples)["trainer.epochs"]
        assert round(epochs * samples, 6) == STEPS * 4096


def test_the_first_steps_do_not_count(tmp_path):
    # 64 draws a step; the first ten at 10 images/s, then at 320 and, for the last ten, at 640.
    rates = {1: 1.0, WARM_STEPS: 10.0, 20: 320.0, 30: 320.0, STEPS: 640.0}
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    lines = [{"step": step, "draw": 64 * step, "loss": 1.0, "images_per_second": rate} for step, rate in rates.items()]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert seconds_per_step(tmp_path) == pytest.approx((20 * 0.2 + 10 * 0.1) / 30)
