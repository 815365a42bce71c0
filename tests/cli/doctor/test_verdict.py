"""The bottleneck, hours and advice that follow from given rates."""

import re

import pytest

from mimcl.cli.config import override
from mimcl.cli.doctor import verdict as module
from mimcl.cli.doctor.throughput import Rates
from mimcl.cli.doctor.verdict import IMAGENET, verdict
from mimcl.cli.recipes import cpu_small, mae_b16


def rates(read=10_000.0, decode=None, model=None, **others):
    return Rates(read, decode or {"dali-gpu": 8000.0}, model or {"bfloat16": 2000.0, "float32": 900.0}, **others)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (rates(), "model"),
        (rates(read=500.0), "read"),
        (rates(decode={"dali-gpu": 1500.0, "dali-cpu": 9000.0}), "decode"),  # the first is the one that is used
        (rates(decode={"dali-cpu": 300.0}), "decode"),
        (rates(read=None), None),
    ],
)
@pytest.mark.parametrize("cuda", [True, False])
def test_the_bottleneck_is_the_slowest_stage(found, expected, cuda):
    result = verdict(found, mae_b16(), None, cuda)
    assert result.bottleneck == expected
    if expected is not None:
        assert re.match(rf"{expected} takes {'longest' if cuda else r'[0-9]+%'} .*\(read ", result.why)


def test_shares_on_a_cpu():
    found = verdict(rates(1000.0, {"dali-cpu": 100.0}, {"float32": 50.0}), cpu_small(), None, False)
    assert found.why.startswith("model takes 65% ")
    assert "(read 1.00 ms, decode 10.00 ms, model 20.00 ms)" in found.why


def test_hours_follow_from_the_end_to_end_rate():
    here, imagenet = verdict(rates(end_to_end=1000.0), mae_b16(), 5000, True).predictions
    steps = -(-800 * 5000 // 4096)
    assert here.hours == pytest.approx(steps * 4096 / 1000 / 3600)
    assert imagenet.hours == pytest.approx(800 * IMAGENET / 1000 / 3600, rel=1e-3)
    assert "ImageNet-1K, 1,281,167 images, 800 epochs" in imagenet.line()
    assert "11.9 days" in imagenet.line()
    assert verdict(rates(), mae_b16(), 5000, True).predictions == []
    (only,) = verdict(rates(end_to_end=1000.0), mae_b16(), None, True).predictions
    assert only.images == IMAGENET


SHRINK = "mimcl shard shards --short-side 256 --out shards-256"


def test_a_range_where_the_steps_vary_by_more_than_a_factor_of_two():
    steady = rates(end_to_end=1000.0, end_to_end_range=(700.0, 1300.0))
    assert "11.9 days" in verdict(steady, mae_b16(), None, True).predictions[0].line()
    (varied,) = verdict(rates(end_to_end=1000.0, end_to_end_range=(400.0, 1300.0)), mae_b16(), None, True).predictions
    assert varied.line().endswith("800 epochs: 9.1 to 29.7 days")
    assert varied.hours == pytest.approx(800 * IMAGENET / 1000 / 3600, rel=1e-3)


def advice(found, config=None, cuda=True, shrink=SHRINK):
    return "\n".join(verdict(found, config or mae_b16(), None, cuda, shrink).advice)


def test_advice(monkeypatch):
    monkeypatch.setattr(module, "usable_cores", lambda: 10_000.0)
    assert advice(rates()) == ""
    slower = {"bfloat16": 100.0, "float32": 200.0}
    assert "--set trainer.precision=float32" in advice(rates(model=slower, micro_batch=256))
    assert "precision" not in advice(rates(model=slower, micro_batch=64))
    assert "--compile is 50%" in advice(rates(model={"bfloat16": 100.0, "bfloat16, compiled": 150.0}))
    assert "faster disk" in advice(rates(read=10.0))
    slow = advice(rates(decode={"dali-cpu": 10.0}))
    assert "dali-gpu" in slow
    assert SHRINK in slow
    assert "scaled_decode" not in slow
    assert "pack smaller" not in advice(rates(decode={"dali-cpu": 10.0}), shrink=None)
    assert "pack smaller" not in advice(rates())
    small = advice(rates(decode={"dali-cpu": 10.0}), cpu_small(), cuda=False)
    assert "--set data.scaled_decode=true" in small
    on_cpu = advice(rates(micro_batch=4), cuda=False)
    assert "--recipe cpu_small" in on_cpu
    assert "micro-batches of 256" in on_cpu
    monkeypatch.setattr(module, "usable_cores", lambda: 1.5)
    assert "decode_threads" not in advice(rates())
    assert "data.decode_threads=1" in advice(rates(), override(mae_b16(), {"data.decode_threads": 8}))


def test_smaller_crops_take_the_time_that_was_measured_for_them():
    config = override(mae_b16(), {"curriculum.resolution": "112:0.5,224"})
    measured = rates(end_to_end=1000.0, end_to_end_by_side={112: 4000.0})
    for images, found in zip((5000, IMAGENET), verdict(measured, config, 5000, True).predictions, strict=True):
        plain = 800 * images / 1000 / 3600
        assert found.hours == pytest.approx(plain * (0.5 / 4 + 0.5), rel=2e-3)
