"""Batches and lengths that fit the data."""

import pytest

from mimcl.cli.fitting import fitting_batch, fitting_epochs
from mimcl.cli.recipes import RECIPES
from mimcl.cli.run.sides import mean_gflop


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


@pytest.mark.parametrize(
    ("samples", "group", "processes", "fitting"),
    [
        (64, 32, 1, 32),
        (400, 32, 2, 64),
        (3000, 24, 1, 192),
        (50_000, 24, 1, 3072),
        (3000, 1, 3, 192),
        (1, 1, 7, 7),
        (50_000, 32, 3, 4096),
    ],
)
def test_a_batch_can_be_divided_among_groups_and_processes(samples, group, processes, fitting):
    assert fitting_batch(4096, samples, group, processes) == fitting


@pytest.mark.parametrize(
    ("recipe", "samples", "batch", "cuda", "epochs"),
    [
        ("cpu_small", 1, 1, False, 800),
        ("cpu_small", 7, 1, False, 150),
        ("cpu_small", 400, 32, False, 80),
        ("cpu_small", 3000, 64, False, 50),
        ("cpu_small", 1_281_167, 64, False, 1.6),
        ("cpu_small", 1_281_167, 64, True, 50),
        ("cifar_tiny", 400, 32, False, 200),
        ("cifar_tiny", 50_000, 256, False, 41),
        ("mae_b16", 400, 32, False, 57),
        ("mae_b16", 400, 32, True, 800),
    ],
)
def test_the_length_has_enough_steps_and_a_cost_that_a_cpu_can_pay(recipe, samples, batch, cuda, epochs):
    assert fitting_epochs(recipe, samples, batch, cuda) == epochs


def test_a_recipe_says_what_a_draw_costs():
    for make in RECIPES.values():
        cost = mean_gflop(make())
        assert f"{cost:.{1 if cost > 1 else 2}f} GFLOP" in make.__doc__
