"""Accuracies over batches, and the learning rate of training with labels."""

import pytest
import torch

from mimcl.model.evaluate.supervised import accuracies, rate_at
from mimcl.model.optim import OptimConfig


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
    rates = [rate_at(position, 100, 10, 512, optim, 0.01) for position in (0, 100, 200, 600, 1000, 1024)]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.01 + 0.19 / 2, 0.01, 0.01])
    assert rate_at(1000, 100, 10, 512, optim) == 0
