"""The slowest stage, the hours and the advice that follow from given rates."""

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
    told = verdict(found, mae_b16(), None, cuda)
    assert told.bottleneck == expected
    if expected is None:
        assert told.why == "not every stage could be tried, so the slowest is not known"
    elif cuda:
        assert told.why.startswith(f"{expected} takes longest for an image (read ")
        assert told.why.endswith("; the three overlap, so it sets the pace")
    else:
        assert re.match(rf"{expected} takes \d+% of an image's time \(read ", told.why)
        assert told.why.endswith("; on a CPU the three share the cores")


def test_shares_on_a_cpu():
    found = verdict(rates(1000.0, {"dali-cpu": 100.0}, {"float32": 50.0}), cpu_small(), None, False)
    assert found.why.startswith("model takes 65% of an image's time (read 1.00 ms, decode 10.00 ms, model 20.00 ms)")


def test_hours_follow_from_the_end_to_end_rate():
    here, imagenet = verdict(rates(end_to_end=1000.0), mae_b16(), 5000, True).predictions
    steps = -(-800 * 5000 // 4096)
    assert here.hours == pytest.approx(steps * 4096 / 1000 / 3600)
    assert imagenet.hours == pytest.approx(800 * IMAGENET / 1000 / 3600, rel=1e-3)
    assert imagenet.line() == "mae_b16 on ImageNet-1K, 1,281,167 images, 800 epochs: about 11.9 days"
    assert verdict(rates(), mae_b16(), 5000, True).predictions == []
    (alone,) = verdict(rates(end_to_end=1000.0), mae_b16(), None, True).predictions
    assert alone.images == IMAGENET


def advice(found, config=None, cuda=True):
    return "\n".join(verdict(found, config or mae_b16(), None, cuda).advice)


def test_advice(monkeypatch):
    monkeypatch.setattr(module, "usable_cores", lambda: 10_000.0)
    assert advice(rates()) == ""
    slower = {"bfloat16": 100.0, "float32": 200.0}
    assert "--set trainer.precision=float32" in advice(rates(model=slower, micro_batch=256))
    assert "precision" not in advice(rates(model=slower, micro_batch=64))
    assert "--compile gains 50%" in advice(rates(model={"bfloat16": 100.0, "bfloat16, compiled": 150.0}))
    assert "faster disk" in advice(rates(read=10.0))
    slow = advice(rates(decode={"dali-cpu": 10.0}))
    assert "let the GPU decode" in slow
    assert "--short-side 256" in slow
    on_cpu = advice(rates(micro_batch=4), cuda=False)
    assert "--recipe cpu_small" in on_cpu
    assert "micro-batches of 4 instead of 256" in on_cpu
    monkeypatch.setattr(module, "usable_cores", lambda: 1.5)
    assert "decode_threads" not in advice(rates())
    assert "data.decode_threads=1" in advice(rates(), override(mae_b16(), {"data.decode_threads": 8}))
