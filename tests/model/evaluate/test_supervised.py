"""Accuracies over batches, and the learning rate of training with labels."""

import pytest
import torch

from mimcl.model.config import OptimConfig
from mimcl.model.evaluate.supervised import accuracies, rate_at


def test_accuracies_count_over_batches_of_any_size():
    logits = torch.tensor([[3.0, 2, 1, 0, -1, -2], [0, 1, 2, 3, 4, 5], [9, 8, 7, 6, 5, 4], [1, 0, 0, 0, 0, 9]])
    wanted = torch.tensor([0, 0, 3, -1])  # right; sixth of six; fourth; of a class that is not known
    batches = [slice(0, 3), slice(3, 4)]
    found = accuracies(lambda b: logits[b], batches, lambda b: wanted[b], torch.device("cpu"))
    assert list(found) == [("top1", 0.25), ("top5", 0.5)]
    two = dict(accuracies(lambda b: logits[b, :2], batches, lambda b: wanted[b], torch.device("cpu")))
    assert two == {"top1": 0.25, "top5": 0.5}


def test_the_rate_warms_up_and_falls_to_its_end():
    optim = OptimConfig(base_lr=0.1, warmup_epochs=2)
    rates = [rate_at(1000 * epoch, 1000, 10, 512, optim, 0.01) for epoch in (0, 1, 2, 6, 10, 10.24)]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.01 + 0.19 / 2, 0.01, 0.01])
    assert rate_at(10_000, 1000, 10, 512, optim) == 0


@pytest.mark.parametrize("epochs", [0.01, 0.5, 1, 1.01, 2, 3])
def test_the_shortest_trainings_have_a_rate_too(epochs):
    optim = OptimConfig(base_lr=0.1, warmup_epochs=min(5.0, epochs / 5))  # as evaluations set it
    assert rate_at(0, 64, epochs, 64, optim, 1e-6) == pytest.approx(0.1 * 64 / 256)
