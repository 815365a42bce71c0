"""How often training with labels is saved."""

import pytest

from mimcl.cli.evaluate.fit_recorder import save_every


@pytest.mark.parametrize(
    ("batch_size", "steps", "expected"),
    [
        (16_384, 7037, 31),  # MAE's linear probe
        (1024, 125_100, 500),  # MAE's fine-tuning of ViT-B
        (64, 1000, 100),  # a short one: 10 times
        (64, 5, 20),  # a tiny one: at its end alone
        (1_000_000, 100, 1),
    ],
)
def test_a_checkpoint_is_saved_by_images_and_some_ten_times_a_short_run(batch_size, steps, expected):
    assert save_every(batch_size, steps) == expected
