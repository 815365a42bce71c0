"""Batches that are too large for the data."""

import dataclasses

import pytest

from mimcl.cli.recipes import recipe
from mimcl.cli.run.batch_advice import batch_advice, fitting_batch
from mimcl.curriculum.masking.masking_config import MaskingConfig


@pytest.mark.parametrize(
    ("samples", "batch", "fitting"),
    [
        (1, 64, 1),
        (7, 64, 1),
        (64, 64, 8),
        (400, 4096, 32),
        (3000, 4096, 256),
        (50_000, 4096, 4096),
        (1_281_167, 4096, 4096),
    ],
)
def test_a_batch_is_at_most_an_eighth_of_the_images(samples, batch, fitting):
    assert fitting_batch(batch, samples) == fitting


def test_a_batch_is_at_least_the_draws_that_a_masker_groups():
    assert fitting_batch(4096, 64, multiple=32) == 32


def test_the_advice_names_the_flag():
    assert "--batch-size 32 " in batch_advice(recipe("mae_b16"), 400)
    assert batch_advice(recipe("mae_b16"), 50_000) is None
    learned = dataclasses.replace(recipe("mae_b16"), masking=MaskingConfig("learned"))
    assert "--batch-size 32 " in batch_advice(learned, 64)
