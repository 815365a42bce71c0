"""Epochs are counted in draws, from draw 0; schedules end at the last one, despite float64 rounding."""

import math

import pytest
import torch

from mimcl.curriculum.masking.schedule import MaskingSchedule

SAMPLES, BATCH = 1_281_167, 4096


def at(draw: int, draws: int) -> torch.Tensor:
    return torch.tensor(draw / draws, dtype=torch.float64)


@pytest.mark.parametrize("epochs", [1, 3, 7, 200, 800])
def test_an_epoch_begins_at_its_first_draw_and_the_rest_of_the_last_batch_is_not_an_epoch(epochs):
    draws = BATCH * math.ceil(epochs * SAMPLES / BATCH)
    clock = MaskingSchedule("epoch", epochs, draws / SAMPLES)
    assert clock.num_epochs == epochs
    for epoch in range(epochs):
        for draw in (epoch * SAMPLES, (epoch + 1) * SAMPLES - 1):
            assert clock.epoch(at(draw, draws)) == epoch
            assert clock.clocked_progress(at(draw, draws)) == (epoch + 1) / epochs
    assert clock.epoch(at(draws - BATCH, draws)) == epochs - 1


@pytest.mark.parametrize(("epochs", "whole"), [(0.4, 1), (1.0, 1), (2.5, 3), (3.0000000001, 3)])
def test_a_part_of_an_epoch_counts_as_one(epochs, whole):
    clock = MaskingSchedule("epoch", epochs, epochs)
    assert clock.num_epochs == whole
    assert {clock.epoch(at(draw, 1000)).item() for draw in range(1000)} == set(range(whole))
    assert clock.clocked_progress(at(999, 1000)) == 1


def test_by_steps_schedules_move_with_the_draws():
    clock = MaskingSchedule("step", 3.7, 4.0)
    assert [clock.epoch(at(draw, 8)).item() for draw in (0, 1, 8)] == [0, 0.5, 4]
    assert [clock.clocked_progress(at(draw, 8)).item() for draw in (0, 1, 8)] == [0, 0.125, 1]
