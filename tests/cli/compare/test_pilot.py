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


def timed(folder, steps):
    """Write a pilot's log: the rate of each step in images per second, and its side, at 64 draws a step."""
    (folder / "config.yaml").write_text("seed: 0\n")
    lines = [
        {"step": number, "draw": 64 * number, "loss": 1.0, "images_per_second": rate, **side}
        for number, (rate, side) in enumerate(steps, start=1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_the_first_steps_do_not_count(tmp_path):
    timed(tmp_path, [(10.0, {})] * WARM_STEPS + [(320.0, {})] * 20 + [(640.0, {})] * 10)
    assert seconds_per_step(tmp_path) == pytest.approx((20 * 0.2 + 10 * 0.1) / 30)


def test_sides_count_as_often_as_they_occur_without_their_first_step(tmp_path):
    small, large = {"image_size": 32.0}, {"image_size": 64.0}
    first = [(10.0, small)] * WARM_STEPS + [(640.0, small)] * 20  # 0.1 s a step
    timed(tmp_path, [*first, (1.0, large), *[(320.0, large)] * 9])  # 0.2 s; the first one compiles
    assert seconds_per_step(tmp_path) == pytest.approx((30 * 0.1 + 10 * 0.2) / STEPS)
    timed(tmp_path, [(640.0, small)] * WARM_STEPS + [(320.0, large)] * 30)  # nothing but warm-up at 32 pixels
    assert seconds_per_step(tmp_path) == pytest.approx((10 * 0.1 + 30 * 0.2) / STEPS)
