"""Outcomes are read one step late, as they were; and what the clock counts."""

import time

import torch

from mimcl.model.metrics import Meter, OutcomeReader


def test_a_step_is_read_one_late_and_as_it_was():
    reader = OutcomeReader(torch.device("cpu"))
    assert reader.flush() == []
    figures = torch.tensor([0.5, 2.0, 0.0, 3.0], dtype=torch.float64)
    assert reader.push(1, 0.1, figures) == []
    figures.copy_(torch.tensor([0.25, torch.nan, 2.0, 0.0]))
    ((first),) = reader.push(2, 0.2, figures)
    figures.zero_()
    (second,) = reader.flush()
    assert (first.step, first.lr, first.loss, first.grad_norm, first.bad) == (1, 0.1, 0.5, 2.0, 3)
    assert (first.finite, first.stop) == (True, False)
    assert (second.step, second.loss, second.finite, second.stop, second.bad) == (2, 0.25, False, True, 0)
    assert reader.flush() == []


def test_time_apart_does_not_count():
    meter = Meter()
    with meter.paused():
        time.sleep(0.3)
    assert meter.elapsed() < 0.2
    time.sleep(0.3)
    assert meter.elapsed() > 0.29
